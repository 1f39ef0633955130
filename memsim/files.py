"""Files: atomic writes, private caches, and the checks to make before a large write."""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from memsim.cap.mounts import unescaped
from memsim.errors import InputError
from memsim.reading import kind_of_file
from memsim.units import format_bytes

_MOST_LINKS = 40
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
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` on success and disappears on failure.

    The bytes are flushed to disk before the rename, so a reader (or a power cut) sees the old file or the new one.
    Through a link, the file is made where that points. A new file has the rights that the umask leaves, one that is
    replaced keeps its own. What is no regular file (a device, a pipe, ``/dev/stdout``) is opened and written, and
    never replaced.

    Raises:
        InputError: The directory cannot be written, or the disk is full.
    """
    with writing(path):
        stream = _stream(path)
    if stream is None:
        with _replacing(path) as file:
            yield file
        return
    with writing(path), stream:
        yield stream
        stream.flush()


def _stream(path: Path) -> BinaryIO | None:
    """Open what ``path`` names for writing if it is not, and does not become, a regular file of its own."""
    descriptor = _own_descriptor(path)
    if descriptor is not None:
        for text in (sys.stdout, sys.stderr):
            if text is not None:
                text.flush()  # before what is written behind their backs
        # The same open file, so that what is printed before and after stays in order, even in a file.
        return os.fdopen(os.dup(descriptor), "wb")
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            return path.open("wb")
    return None


def _own_descriptor(path: Path) -> int | None:
    """Return the descriptor of this process that ``path`` names (``/dev/stdout``, ``/dev/fd/3``), or None."""
    descriptors = os.path.realpath("/proc/self/fd")
    name = os.path.abspath(path)  # noqa: PTH100 (strings, since links are followed one by one)
    for _ in range(_MOST_LINKS):
        directory, last = os.path.realpath(os.path.dirname(name)), os.path.basename(name)  # noqa: PTH119, PTH120
        name = os.path.join(directory, last)  # noqa: PTH118
        if directory == descriptors and last.isdecimal():
            return int(last)
        if not os.path.islink(name):  # noqa: PTH114
            return None
        name = os.path.join(directory, os.readlink(name))  # noqa: PTH115, PTH118
    return None


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file beside the regular one that ``path`` is or becomes, and put it in its place at the end."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            temporary.unlink(missing_ok=True)  # of a dead process that had this one's number
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                with suppress(FileNotFoundError):
                    os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists() and not target.is_file():
                raise InputError(f"cannot write {path}: it became {kind_of_file(target.stat().st_mode)} meanwhile")
            temporary.replace(target)
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
