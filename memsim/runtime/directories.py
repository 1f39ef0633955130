"""The directories of a run: the one it leaves behind, and the one that only the worker needs."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from memsim.errors import InputError

RUNS = Path("runs")
"""Where runs go that were given no directory."""


@contextmanager
def out_directory(requested: Path | None, stem: str) -> Iterator[Path]:
    """Create the output directory; if the run never gets to its record, remove it and the parents it needed."""
    first = RUNS.absolute() / f"{time.strftime('%Y%m%d-%H%M%S')}-{stem.replace('/', '-')}"
    numbered = [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 1000))]
    candidates = [requested.absolute()] if requested else numbered
    with ExitStack() as undo:
        try:
            for parent in reversed([path for path in candidates[0].parents if not path.exists()]):
                parent.mkdir(exist_ok=True)
                undo.callback(_remove_if_empty, parent)
            out = _make_first(candidates)
        except OSError as error:
            raise InputError(f"cannot create the output directory: {error}; choose another with --out") from error
        undo.callback(shutil.rmtree, out, ignore_errors=True)
        yield out
        undo.pop_all()


def _make_first(candidates: Sequence[Path]) -> Path:
    """Create the first of these directories that does not exist yet."""
    for path in candidates:
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise InputError(f"{candidates[-1]} exists; choose another directory with --out")


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


@contextmanager
def work_directory(out: Path) -> Iterator[Path]:
    """Files that only the worker needs: token ids, orders."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".work-") as work:
        yield Path(work)
