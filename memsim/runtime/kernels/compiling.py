"""Compiling the kernels, outside any cap, in a process of its own: one at a time, with a count."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memsim.cap.child import child_command, start_child
from memsim.errors import InputError, WorkerError
from memsim.execution.cache_entries import discard_torn
from memsim.execution.compile_cache import kernel_environment
from memsim.files import cache_dir, last_line, require_free, temporary_file, writing
from memsim.progress_types import StageProgress
from memsim.runtime.kernels.marker import kernels_directory
from memsim.staged_directory import locked

_COMPILED_BYTES = 8 << 20
"""What compiled kernels take on the disk: 2 MB were measured without bf16."""

_TELL_S = 2.0


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a process that loaded all kernels says.

    Attributes:
        fastest: The compute path that multiplies packed weights fastest.
        paths: Every compute path of this processor.
        directory: Where the compiled files are.
    """

    fastest: str
    paths: tuple[str, ...]
    directory: Path


@contextmanager
def one_at_a_time(progress: StageProgress) -> Iterator[None]:
    """Hold the lock on compiling; who comes second waits, and says so.

    A cache that cannot be written needs no lock: nobody compiles into it.

    Raises:
        InputError: The cache cannot be created.
    """
    directory = kernels_directory()
    if directory.is_dir() and not os.access(directory, os.W_OK):
        yield
        return
    cache_dir()
    with writing(directory):
        directory.mkdir(exist_ok=True)
    waiting = "waiting for another memsim that compiles the kernels"
    with locked(directory, on_wait=lambda: progress(waiting), path=directory / ".compiling.lock"):
        yield


def compile_kernels(threads: int, progress: StageProgress) -> Compiled:
    """Compile what is not in the cache, and throw away what was cut short.

    Raises:
        WorkerError: Compiling failed; the message holds the last line that the process wrote.
        InputError: The cache cannot be written, or its disk is full.
    """
    directory = kernels_directory()
    if os.access(directory, os.W_OK):
        require_free(directory, _COMPILED_BYTES, "compiling the kernels")
        with writing(directory):
            discard_torn(directory)
    progress("looking for compiled kernels")
    answer = kernel_child(threads, "compile", _Count(progress))
    try:
        return Compiled(answer["fastest"], tuple(answer["paths"]), Path(answer["directory"]))
    except (KeyError, TypeError) as error:
        raise WorkerError(f"cannot compile the kernels: the answer was {answer!r}") from error


class _Count:
    """Tells how many kernels are compiled, and about how long the others take."""

    def __init__(self, progress: StageProgress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._clock = progress, clock
        self._first: tuple[int, float] | None = None
        self._told_s = -_TELL_S

    def __call__(self, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` are there, of which some were from the start."""
        now_s = self._clock()
        first_done, first_s = self._first = self._first or (done, now_s)
        if now_s - self._told_s < _TELL_S:
            return
        self._told_s = now_s
        left = ""
        if done > first_done:
            left = f", about {(now_s - first_s) / (done - first_done) * max(total - done, 1):.0f} s left"
        self._progress(f"compiling kernels {done}/{max(total, done)}{left}")


def kernel_child(threads: int, task: str, on_count: Callable[[int, int], None] = lambda *_: None) -> Any:
    """Run ``memsim.execution.kernel_process`` and return its answer.

    Raises:
        WorkerError: It failed.
    """
    command = child_command("memsim.execution.kernel_process", threads, task)
    answer: Any = None
    with temporary_file() as stderr:
        process = start_child(command, stdout=subprocess.PIPE, stderr=stderr, env=kernel_environment())
        with process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    message = json.loads(line)
                    if isinstance(message, list):
                        on_count(*message)
                    else:
                        answer = message
            except ValueError:
                process.kill()
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            what = "compile the kernels" if task == "compile" else f"load the {task} kernels"
            raise WorkerError(f"cannot {what}: {last_line(stderr) or f'exit code {process.returncode}'}")
    return answer


def entries_below(directory: Path) -> dict[str, int]:
    """Return the compiled files in ``directory`` as paths from `kernels_directory`, and their bytes.

    Raises:
        InputError: They cannot be read.
    """
    root = kernels_directory().resolve()
    try:
        found = [path for path in directory.resolve().iterdir() if path.suffix in (".nbi", ".nbc")]
        return {str(path.relative_to(root)): path.stat().st_size for path in sorted(found)}
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the compiled kernels in {directory}: {error}") from error
