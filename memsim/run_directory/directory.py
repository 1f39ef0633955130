"""The directory of a run: it appears with all that a resumed run needs, and belongs to one process at a time."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from memsim.cap.footprint import start_time
from memsim.cap.group import owned_name
from memsim.errors import InputError
from memsim.file_names import EVENTS_FILE, SEEDS_FILE
from memsim.files import writing
from memsim.run_directory.checkpoints import DIRECTORY
from memsim.staged_directory import discard, locked

RUNS = Path("runs")
"""Where runs go that were given no directory."""

EVAL_PROGRAM_FILE = "eval-program.jsonl"
ADAPTER = "adapter"
"""Files of a run's work directory; the adapter's move up when the run is done."""

LOGS = (EVENTS_FILE, SEEDS_FILE)
"""Files of a run directory that grow with the run; a resumed run cuts them back to its checkpoint."""

_LOCK = ".lock"
_WORK = ".work"
_UNSETTLED = re.compile(r"\.memsim-(\d+)-(\d+)(?:-\d+)?")
_TEMPORARY = re.compile(r"\..*\.\d+\.tmp")


class RunDirectory:
    """The directory of a run, locked.

    Attributes:
        path: Where it is. A new one has another name until `settle`.
        keep: Whether it stays if the command fails.
    """

    def __init__(self, path: Path, candidates: Sequence[Path] = ()) -> None:
        self.path = path
        self.keep = not candidates
        self._candidates = candidates

    @property
    def checkpoints(self) -> Path:
        """What a resumed run needs: settings, token ids, steps, checkpoints."""
        return self.path / DIRECTORY

    @property
    def work(self) -> Path:
        """Files that only this command needs; gone when it ends."""
        return self.path / _WORK

    def settle(self) -> None:
        """Give a new directory, which holds all that a resumed run needs, its name.

        Raises:
            InputError: There is a directory of that name by now, or the disk is full.
        """
        failure = "it exists"
        for path in self._candidates:
            if not path.exists():
                try:
                    self.path = self.path.rename(path)
                    return
                except OSError as error:
                    failure = error.strerror or str(error)
        raise InputError(f"cannot create {self._candidates[-1]}: {failure}; choose another with --out")


@contextmanager
def new_directory(requested: Path | None, stem: str) -> Iterator[RunDirectory]:
    """Yield a new directory; if it is not to be kept, remove it and the parents that it needed.

    What killed commands left beside it is removed, too.

    Raises:
        InputError: It cannot be created.
    """
    first = RUNS.absolute() / f"{time.strftime('%Y%m%d-%H%M%S')}-{stem.replace('/', '-')}"
    numbered = [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 1000))]
    candidates = [requested.absolute()] if requested else numbered
    with ExitStack() as undo:
        try:
            for parent in reversed([path for path in candidates[0].parents if not path.exists()]):
                parent.mkdir(exist_ok=True)
                undo.callback(_remove_if_empty, parent)
            remove_leftovers(candidates[0].parent)
            path = make_unsettled(candidates[0].parent)
            directory = RunDirectory(path, candidates)
            undo.callback(lambda: discard(directory.path))
            directory.checkpoints.mkdir()
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot create {candidates[0]}: {reason}; choose another with --out") from error
        with _in_use(directory):
            try:
                yield directory
            except BaseException:
                if directory.keep:
                    undo.pop_all()
                raise
        undo.pop_all()


@contextmanager
def existing_directory(path: Path) -> Iterator[RunDirectory]:
    """Yield the directory of an earlier run; what that left half-written is removed.

    Raises:
        InputError: Another process uses it, something in it lies elsewhere, or it cannot be written.
    """
    directory = RunDirectory(path.absolute())
    _require_own_files(directory)
    with _in_use(directory):
        remove_leftovers(directory.path.parent)
        yield directory


def _require_own_files(directory: RunDirectory) -> None:
    """Refuse what is written, cut and removed in a run directory if it is a link (or a pipe, or a device).

    Raises:
        InputError: There is such a thing, or the directory cannot be read.
    """
    try:
        for place in (directory.path, directory.checkpoints):
            for entry in sorted(place.iterdir()) if place.is_dir() else ():
                if entry.is_symlink():
                    raise InputError(
                        f"{entry} is a link, and going on would write where it points; put the file itself there"
                    )
                if not entry.is_file() and not entry.is_dir():
                    raise InputError(f"{entry} is no regular file; remove it")
    except OSError as error:
        raise InputError(f"cannot read {directory.path}: {error.strerror or error}") from error


@contextmanager
def _in_use(directory: RunDirectory) -> Iterator[None]:
    """Hold the directory's lock, with an empty work directory in it."""
    with locked(directory.path, path=directory.path / _LOCK):
        try:
            _tidy(directory)
            with writing(directory.path):
                directory.work.mkdir()
            yield
        finally:
            _tidy(directory)
            (directory.path / _LOCK).unlink(missing_ok=True)  # by its name of today


def _tidy(directory: RunDirectory) -> None:
    """Remove the work directory, and the files that a killed process left half-written."""
    discard(directory.work)
    for place in (directory.path, directory.checkpoints):
        for file in place.glob(".*.tmp"):
            if _TEMPORARY.fullmatch(file.name):
                file.unlink(missing_ok=True)


def remove_leftovers(parent: Path) -> None:
    """Remove what dead processes left in ``parent``: directories without their names, and work in those with one."""
    for path in parent.glob(".memsim-*"):
        match = _UNSETTLED.fullmatch(path.name)
        if match and start_time(int(match[1])) != int(match[2]):
            discard(path)
    for lock in parent.glob(f"*/{_LOCK}"):  # of those that got it, and were killed later
        directory = RunDirectory(lock.parent)
        if directory.checkpoints.is_dir() and not (lock.is_symlink() or lock.parent.is_symlink()):
            with suppress(InputError), locked(lock.parent, path=lock):  # refused while it is in use
                _tidy(directory)


def make_unsettled(parent: Path) -> Path:
    """Make a directory that ``remove_leftovers`` removes once this process is dead.

    Raises:
        InputError: There are too many already.
        OSError: ``parent`` cannot be written.
    """
    for number in range(1, 1000):  # one process may have several runs
        with suppress(FileExistsError):
            path = parent / f".{owned_name()}-{number}"
            path.mkdir()
            return path
    raise InputError(f"cannot create a directory in {parent}: too many of this process are there")


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()
