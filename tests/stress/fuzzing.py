"""Mutations given to the product: each is refused in one line, soon, in little memory, or read as others read it."""

import os
import resource
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mutations import Mutation, byte_mutations, mixed

from memsim.cap.footprint import ProcessStatus
from memsim.errors import MemsimError
from special_files import SPECIAL

LIMIT_S, LIMIT_BYTES = 5, 300 << 20
_LONGEST_LINE = 2000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of input.

    Attributes:
        name: What it is called.
        files: Path in the directory -> content, of all that belongs together.
        target: The one of them that is changed.
        mutations: (its content, random) -> changed contents, without end.
        read: What the product reads of the directory.
        check: Raises AssertionError where that is not what another library reads of it.
        repair: Makes checksums fit the changed content, as somebody hostile would.
        share: How many mutations it gets, relative to others.
    """

    name: str
    files: dict[str, bytes]
    target: str
    mutations: Callable[[bytes, np.random.Generator], Iterator[Mutation]]
    read: Callable[[Path], Any]
    check: Callable[[Path, Any], None]
    repair: Callable[[Path], None] = lambda directory: None
    share: float = 1.0


@dataclass(slots=True)
class Tally:
    """What became of the mutations of a kind."""

    refused: int = 0
    accepted: int = 0
    slowest_s: float = 0.0
    most_bytes: int = 0
    failures: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def fuzz(kind: Kind, count: int, seed: int, directory: Path) -> Tally:
    """Give ``count`` mutations of ``kind`` to the product, in ``directory``, which must be empty."""
    random = np.random.default_rng((seed, *kind.name.encode()))
    original = kind.files[kind.target]
    tally = Tally()
    things = [(f"{what} in its place", make) for what, make in [*SPECIAL.items(), ("nothing", _nothing)]]
    things += [("a link to itself in its place", lambda path: path.symlink_to(path.name))]
    stream = mixed(kind.mutations(original, random), byte_mutations(original, random))
    _write(kind, directory, original)
    kind.read(directory)  # imports are not measured
    kind.check(directory, kind.read(directory))
    for number in range(count):
        name, content = things[number] if number < min(len(things), count // 4) else next(stream)
        with suppress(_Skipped):
            _write(kind, directory, content)
            _one(kind, directory, f"{number}: {name}", tally)
    return tally


class _Skipped(Exception):
    """A thing that cannot be made here."""


def _nothing(path: Path) -> None:
    """Leave no file in the place of one."""


def _write(kind: Kind, directory: Path, content: bytes | Callable[[Path], None]) -> None:
    """Lay out the files of ``kind``, with ``content`` as the one that is changed."""
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name, data in kind.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != kind.target:
            path.write_bytes(data)
    target = directory / kind.target
    if isinstance(content, bytes):
        target.write_bytes(content)
        with suppress(Exception):  # what cannot be parsed has no checksums to be made right
            kind.repair(directory)
        return
    try:
        content(target)
    except BaseException as error:
        if "Skipped" not in type(error).__name__:
            raise
        raise _Skipped from error


def _one(kind: Kind, directory: Path, name: str, tally: Tally) -> None:
    try:
        with limits(tally):
            found = kind.read(directory)
    except MemsimError as error:
        tally.refused += 1
        line = str(error)
        tally.reasons[line.replace(str(directory), "").strip(" :/")[:60]] += 1
        if "\n" in line or not line.isprintable() or not 0 < len(line) < _LONGEST_LINE:
            tally.failures.append(f"{kind.name} {name:.80}: not one printable line: {line!r:.300}")
        return
    except Exception as error:
        tally.failures.append(f"{kind.name} {name}: {type(error).__name__}: {error!s:.300}")
        return
    tally.accepted += 1
    if not (directory / kind.target).is_file():  # at which another library would wait for ever
        tally.failures.append(f"{kind.name} {name:.80}: read, but there is no file")
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.check(directory, found)
    except Exception as error:
        tally.failures.append(f"{kind.name} {name}: read, but {type(error).__name__}: {error!s:.300}")


@contextmanager
def limits(tally: Tally) -> Iterator[None]:
    """Stop what takes longer than 5 seconds of work, hangs, or takes more than 300 MiB more memory."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"took over {LIMIT_S} s")

    before = [(number, signal.signal(number, late)) for number in (signal.SIGALRM, signal.SIGPROF)]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = ProcessStatus()
    resource.setrlimit(resource.RLIMIT_DATA, (status.sizes_bytes()["VmData"] + LIMIT_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    signal.setitimer(signal.ITIMER_REAL, 12 * LIMIT_S)  # a busy machine; what waits for ever is stopped all the same
    start_s = _work_s()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    start_bytes = status.sizes_bytes()["VmRSS"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        tally.most_bytes = max(tally.most_bytes, status.sizes_bytes()["VmHWM"] - start_bytes)
        status.close()
        for number, handler in before:
            signal.signal(number, handler)
        tally.slowest_s = max(tally.slowest_s, _work_s() - start_s)


def _work_s() -> float:
    """Return seconds of processors that this process and its children took."""
    return sum(os.times()[:4])
