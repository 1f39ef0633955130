"""What only Linux has, asked for in one place: a command that needs it says so before it does anything."""

import os
from pathlib import Path

from memsim.errors import InputError

PROC = Path("/proc")
_CALLS = ("pidfd_open", "posix_fadvise", "posix_fallocate", "sched_getaffinity")


def require_linux(what: str, proc: Path = PROC) -> None:
    """Refuse a command that counts and limits a process's pages on a system that lets nobody do that.

    Args:
        what: What needs it: ``a capped run``.
        proc: Where the proc file system is.

    Raises:
        InputError: The message names what is missing.
    """
    if not (proc / "self/mountinfo").exists():
        raise InputError(f"{what} needs Linux with /proc mounted; run memsim in a Linux machine or container")
    if missing := [name for name in _CALLS if not hasattr(os, name)]:
        raise InputError(f"{what} needs Linux; this system has no {missing[0]}: use a Linux machine or container")
