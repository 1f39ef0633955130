"""Files: atomic writes, private caches, and the checks to make before a large write."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from memsim.cap.mounts import unescaped
from memsim.errors import InputError
from memsim.units import format_bytes

_MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make one line about ``path`` of what the disk refuses in here.

    Raises:
        InputError: The disk is full or failed, or ``path`` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` on success and disappears on failure.

    The bytes are flushed to disk before the rename, so a reader (or a power cut) sees the old file or the new one.

    Raises:
        InputError: The directory cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with temporary.open("wb") as file:
                os.fchmod(file.fileno(), mode)
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_file() -> BinaryIO:
    """Return a file without a name in the system's directory for such.

    Raises:
        InputError: There is none that can be written.
    """
    with writing(Path(os.environ.get("TMPDIR", "/tmp"))):
        return cast(BinaryIO, tempfile.TemporaryFile())


def sync_directory(directory: Path) -> None:
    """Bring the names in ``directory`` to disk, so that what was renamed stays renamed after a power cut.

    Raises:
        InputError: The disk failed.
    """
    with writing(directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode())


def last_line(file: BinaryIO) -> str:
    """Return the last line of what a process wrote to ``file``, 4 KiB of it at most."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 4096))
    return file.read().decode(errors="replace").strip().rpartition("\n")[2]


def cache_dir(writable: bool = True) -> Path:
    """Return memsim's own cache directory: ``$MEMSIM_CACHE``, else ``memsim`` in the user's cache.

    Args:
        writable: Create it. Without, it may be missing or read-only: for those who look for what is there.

    Raises:
        InputError: It cannot be created or written; the message names the variable that moves it.
    """
    directory = _cache_place()
    if not writable:
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the cache {directory}: {error.strerror}; set MEMSIM_CACHE to a writable directory"
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InputError(f"cannot write the cache {directory}; set MEMSIM_CACHE to a writable directory")
    return directory


def _cache_place() -> Path:
    if named := os.environ.get("MEMSIM_CACHE"):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "memsim"
    try:
        return Path.home() / ".cache" / "memsim"
    except RuntimeError as error:  # a container's user: no HOME, and no line in the list of users
        raise InputError(
            "this user has no home directory for a cache; set MEMSIM_CACHE to a writable directory"
        ) from error


def file_system(path: Path) -> str:
    """Return the type of the file system that holds ``path`` (``ext4``, ``tmpfs``, ...), from ``/proc/mounts``."""
    target = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in os.fsdecode(Path("/proc/mounts").read_bytes()).split("\n"):
        if not line:
            continue
        fields = line.split(" ")
        mount = unescaped(fields[1])
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fields[2]
    return kind


def require_disk(directory: Path, what: str) -> None:
    """Refuse a directory whose files live in RAM.

    Raises:
        InputError: ``directory`` is on tmpfs or the like, where spilling would use the memory that it should free.
    """
    kind = file_system(directory)
    if kind in _MEMORY_FILE_SYSTEMS:
        raise InputError(f"{what} directory {directory} is on {kind}, which is memory; choose one on a disk")


def require_free(directory: Path, n_bytes: int, what: str) -> None:
    """Check free space before a large write.

    Raises:
        InputError: The file system of ``directory`` has less than ``n_bytes`` free.
    """
    free = shutil.disk_usage(directory).free
    if free < n_bytes:
        raise InputError(
            f"{what} needs {format_bytes(n_bytes)} in {directory}, which has {format_bytes(free)} free; "
            f"free some space or choose another directory"
        )
