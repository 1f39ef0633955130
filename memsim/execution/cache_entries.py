"""Numba's files of compiled kernels: which were cut short, by a full disk or when the power went."""

import pickletools
from collections.abc import Iterator
from pathlib import Path

_PICKLES = {".nbi": 2, ".nbc": 1}
"""How many pickles follow each other in an index (its version, its entries), and in a kernel's code."""


def torn_entries(directory: Path) -> list[Path]:
    """Return the files in ``directory`` that do not hold what their kind does, cut short or empty."""
    return [path for path in _entries(directory) if not _is_whole(path)]


def discard_torn(directory: Path) -> None:
    """Remove them, so that Numba compiles those kernels again instead of failing on each later run.

    Raises:
        OSError: The directory cannot be written.
    """
    for path in torn_entries(directory):
        path.unlink(missing_ok=True)


def _entries(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.glob("**/*")) if path.suffix in _PICKLES)


def _is_whole(path: Path) -> bool:
    """Return whether the pickles of ``path`` end where they should; nothing of them is executed."""
    try:
        with path.open("rb") as file:
            for _ in range(_PICKLES[path.suffix]):
                for _operation in pickletools.genops(file):
                    pass
            return file.read(1) == b""
    except (ValueError, EOFError, OSError):
        return False
