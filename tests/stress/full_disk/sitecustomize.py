# ruff: noqa: PTH100, PTH110, PTH115
"""A disk that is full from the k-th write of one process on: Python loads this file first, where PYTHONPATH says so.

``MEMSIM_FULL_DISK`` is ``ROLE:K:MODE:MARKER``. The K-th call by which a process of that role (``command``, ``worker``,
``tokenize``) would write to a regular file, in whatever way, raises ENOSPC, and a file MARKER says what it was. With
the mode ``stays`` every later one does so too, in all processes; with ``once`` only that one. With K = 0 nothing
fails, and MARKER says how many such calls there were.
"""

import atexit
import builtins
import errno
import io
import os
import stat
import sys
import threading

_role, _k, _mode, _marker = os.environ["MEMSIM_FULL_DISK"].split(":", 3)
_K = int(_k)
_STAYS = _mode == "stays" and _K > 0
_PROGRAMS = {"command": "memsim", "worker": "memsim.execution.worker", "tokenize": "memsim.data.tokenize"}
_MINE = _PROGRAMS[_role] in sys.orig_argv
# Not a disk; or the directories in which Numba tries whether it could write before it reads compiled kernels.
_IGNORED = ("/sys/", "/proc/", "/dev/", os.path.abspath(os.environ.get("NUMBA_CACHE_DIR", "/dev/")))
_lock = threading.Lock()
_count = 0
_os_open, _os_write, _os_close = os.open, os.write, os.close
_io_open = io.open


def _fault(what: str, target: object) -> None:
    """Count a write to ``target``, a path or a descriptor, and fail if it is its turn."""
    global _count
    path = _path(target)
    if not path or path.startswith(_IGNORED):
        return
    with _lock:
        _count += _MINE
        fails = _MINE and _count == _K
        if fails:
            marker = _os_open(_marker, os.O_CREAT | os.O_WRONLY, 0o600)
            _os_write(marker, f"{what} {path}".encode())
            _os_close(marker)
    if fails or (_STAYS and os.path.exists(_marker)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _path(target: object) -> str:
    """Return where a path or a descriptor leads; nothing if that is on no disk, such as a pipe."""
    if not isinstance(target, int):
        return os.path.abspath(os.fsdecode(target))  # type: ignore[arg-type]
    mode = os.fstat(target).st_mode
    return os.readlink(f"/proc/self/fd/{target}") if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else ""


def _failing(what: str, position: int = 0) -> None:
    original = getattr(os, what)

    def call(*arguments, **named):  # type: ignore[no-untyped-def]
        _fault(what, arguments[position])
        return original(*arguments, **named)

    setattr(os, what, call)


for _what in ("write", "writev", "pwrite", "pwritev", "fsync", "fdatasync", "posix_fallocate"):
    _failing(_what)
for _what in ("ftruncate", "truncate", "mkdir"):
    _failing(_what)
for _what in ("rename", "replace", "link", "symlink"):
    _failing(_what, 1)


def _open_descriptor(path, flags, *arguments, **named):  # type: ignore[no-untyped-def]
    if flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE:
        _fault("create", path)
    return _os_open(path, flags, *arguments, **named)


class _Raw(io.FileIO):
    def write(self, data):  # type: ignore[no-untyped-def]
        _fault("write", self.fileno())
        return super().write(data)


def _open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):  # type: ignore[no-untyped-def]
    if not set(mode) & set("wax+"):
        return _io_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    if not isinstance(file, int) and opener is None and set(mode) & set("wax"):
        _fault("create", file)
    raw = _Raw(file, "".join(sorted(set(mode) - set("bt"))), closefd, opener)
    if buffering == 0:
        return raw
    buffer = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)  # type: ignore[operator]
    return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)


def _tell() -> None:
    with _io_open(_marker, "w") as file:
        file.write(str(_count))


if _MINE and not _K:
    atexit.register(_tell)
os.open = _open_descriptor
io.open = builtins.open = _open
