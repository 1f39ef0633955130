"""Directories that appear whole or not at all, written by one process at a time."""

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memsim.errors import InputError


@contextmanager
def locked(target: Path, on_wait: Callable[[], None] | None = None, path: Path | None = None) -> Iterator[None]:
    """Hold the lock on writing ``target``, across processes; the kernel releases it if this process dies.

    Args:
        target: What will be written.
        on_wait: Called before waiting for another process. None refuses instead of waiting.
        path: The lock's file, removed at the end; ``.<name>.lock`` beside ``target`` by default. It holds the process
            id and the start of its holder.

    Raises:
        InputError: Another process holds it and ``on_wait`` is None, or the directory cannot be written.
    """
    path = path or target.with_name(f".{target.name}.lock")
    try:
        descriptor = _acquire(path, target, on_wait)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise InputError(f"cannot lock {path}: it is a link; remove it") from error
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, target: Path, on_wait: Callable[[], None] | None) -> int:
    while True:
        # Not through a link, whose target would be overwritten; nor what is no file.
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"cannot lock {path}: it is no regular file; remove it")
            if _lock(descriptor, target, on_wait) and _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, target: Path, on_wait: Callable[[], None] | None) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is None:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            raise InputError(f"another memsim process ({holder}) is writing {target}; wait for it to finish") from None
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the locked file is still the one at ``path``; its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside ``target`` that becomes ``target`` on success and disappears on failure.

    What a killed process left behind is removed first. Call it while holding ``locked(target)``.

    Raises:
        InputError: The parent cannot be written, or the disk is full.
    """
    staging = target.with_name(f".{target.name}.tmp")
    try:
        discard(staging)
        staging.mkdir()
        yield staging
        staging.rename(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        discard(staging)


def discard(directory: Path) -> None:
    """Remove a directory and what it holds, if it is there."""
    shutil.rmtree(directory, ignore_errors=True)
