"""Opening files that others wrote: regular files only, and no more of them than their kind may have."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from memsim.errors import InputError

_SPECIAL = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of_file(mode: int) -> str:
    """Return what a file of ``st_mode`` is, if it is not regular: ``a pipe``."""
    return _SPECIAL.get(stat.S_IFMT(mode), "no file")


def open_regular(path: Path, name: str | None = None) -> BufferedReader:
    """Open an untrusted ``path`` for reading, through links, refusing pipes and devices (on which a read would hang).

    Args:
        path: The file.
        name: What error messages call it; by default, its path.

    Raises:
        InputError: It is missing, unreadable or not a regular file.
    """
    name = name or str(path)
    try:
        # Before it is opened, which is enough to start some devices; and after, since it may be another one by then.
        _require_regular(path.stat().st_mode, name)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    try:
        _require_regular(os.fstat(descriptor).st_mode, name)
    except InputError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def drop_pages(descriptor: int, start: int, n_bytes: int) -> None:
    """Drop a file's pages that nobody needs again, so that what is streamed through memory does not stay there.

    Only Linux can be asked to; elsewhere they stay until the system wants their memory, which is right, too.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, n_bytes, os.POSIX_FADV_DONTNEED)


def _require_regular(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot read {name}: it is {kind_of_file(mode)}, not a regular file")


def read_bytes(path: Path, max_bytes: int, what: str) -> bytes:
    """Return what is in an untrusted file.

    Args:
        path: The file.
        max_bytes: A larger one is refused, and not read.
        what: What error messages call it (``a device file``).

    Raises:
        InputError: It cannot be read, is no regular file, or is too large.
    """
    try:
        with open_regular(path) as file:
            data = file.read(max_bytes + 1) if os.fstat(file.fileno()).st_size <= max_bytes else None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if data is None or len(data) > max_bytes:
        raise InputError(f"{path} is larger than the {_size(max_bytes)} that {what} may have")
    return data


def _size(n_bytes: int) -> str:
    """Return a limit, which is a round number, without a fraction."""
    for unit, shift in (("MiB", 20), ("KiB", 10)):
        if n_bytes >> shift:
            return f"{n_bytes >> shift} {unit}"
    return f"{n_bytes} bytes"
