"""One point: memsim's own command in a process of its own, on processors of its own if it is a real run."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from memsim.cap.child import child_command, start_child
from memsim.errors import InputError, MemsimError
from memsim.files import last_line, temporary_file
from memsim.result_file import MAX_RECORD_BYTES
from memsim.run_directory.directory import make_unsettled, remove_leftovers
from memsim.staged_directory import discard
from memsim.sweep.cores import reserved_cores

_LONGEST_MESSAGE = 1000

_NOT_INHERITED = frozenset(("MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"))
"""What Dask sets in its workers. Allocator and threads of a measured process are memsim's matter, wherever it runs."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to execute: plain data, for it may travel.

    Attributes:
        key: Of the point.
        arguments: The command line after ``memsim``.
        cores: Processors that the process gets for itself; 0 leaves it to the system.
        scratch: Where a real run writes; removed afterwards. A directory on a disk of the machine that executes.
    """

    key: str
    arguments: tuple[str, ...]
    cores: int
    scratch: str


@dataclass(frozen=True, slots=True)
class Done:
    """What became of it.

    Attributes:
        exit_code: Of the command; minus a signal's number.
        output: Its record in JSON, or nothing.
        message: The last line that it had to say; empty when all went well.
        seconds: From start to end, the interpreter's own start included.
    """

    exit_code: int
    output: bytes
    message: str
    seconds: float


Execute = Callable[[Order], Done]


def execute(order: Order) -> Done:
    """Execute a point and wait for it; whatever happens to it is in what is returned."""
    try:
        with ExitStack() as stack:
            more, files = ["--json=-"], tuple[int, ...]()
            if order.cores:
                more.append(f"--out={stack.enter_context(_directory(Path(order.scratch))) / 'run'}")
                files = stack.enter_context(reserved_cores(order.cores))
            return _wait_for([*order.arguments, *more], files)
    except MemsimError as error:
        return Done(error.exit_code, b"", str(error), 0.0)


@contextmanager
def _directory(scratch: Path) -> Iterator[Path]:
    """Yield a new directory; what killed processes left beside it is removed."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        remove_leftovers(scratch)
        directory = make_unsettled(scratch.absolute())
    except OSError as error:
        raise InputError(f"cannot write the scratch directory {scratch}: {error.strerror or error}") from error
    try:
        yield directory
    finally:
        discard(directory)


def _wait_for(arguments: list[str], files: tuple[int, ...]) -> Done:
    command = child_command("memsim", *arguments)
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    started = time.monotonic()
    with temporary_file() as stdout, temporary_file() as stderr:
        with start_child(
            command,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            pass_fds=files,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, whose end ends this
        ) as done:
            try:
                done.wait()
            except BaseException:
                done.kill()
                raise
        seconds = time.monotonic() - started
        stdout.seek(0)
        output = stdout.read(MAX_RECORD_BYTES + 1)
        message = _message(stderr) if done.returncode else ""
    if done.returncode < 0:
        message = f"memsim {arguments[0]} was killed by signal {-done.returncode}"
    return Done(done.returncode, output, message, seconds)


def _message(stderr: BinaryIO) -> str:
    """Return what the command complained of, as its users see it."""
    line = last_line(stderr).removeprefix("memsim: ").removeprefix("Error: ")
    return line[:_LONGEST_MESSAGE] or "it ended without a word"
