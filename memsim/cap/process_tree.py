"""The processes of a tree, and which of them share memory with the one that they were forked from."""

import ctypes
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from memsim.errors import WorkerError

_FORKED: Final = 0x40
"""PF_FORKNOEXEC of ``/proc/PID/stat``: forked, and no other program executed since."""
_KCMP: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272}
_KCMP_VM: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a tree.

    Attributes:
        pid: Its process id.
        started: When it started, in clock ticks since boot: a process id is used again, both together are not.
        forked: Whether it still runs the program that it was forked from, and so may share pages with it.
    """

    pid: int
    started: int
    forked: bool


def require_children(pid: int) -> None:
    """Check that the kernel tells the children of a process.

    Raises:
        WorkerError: It does not.
    """
    if not Path(f"/proc/{pid}/task/{pid}/children").exists():
        raise WorkerError("this kernel does not list the children of a process (/proc/PID/task/TID/children)")


def members(root: int, without: int, known: list[Member]) -> list[Member]:
    """Return the processes of a tree, parents before their children.

    A child that has been started but does not run its own program yet (``vfork``, ``posix_spawn``: every
    ``subprocess``) has the very memory of its parent, and is left out.

    Args:
        root: The process at the top.
        without: A descendant that is not part of it.
        known: Those of an earlier look, which stay in while they live, whoever their parent is now.
    """
    found: dict[int, Member] = {}
    _add(root, None, without, found)
    for before in known:
        if before.pid not in found and (now := _member(before.pid)) and now.started == before.started:
            found[now.pid] = now
    return list(found.values())


def _add(pid: int, parent: int | None, without: int, found: dict[int, Member]) -> None:
    member = None if pid == without else _member(pid)
    if member is None or pid in found:
        return
    if parent is not None and member.forked and _same_memory(pid, parent):
        return
    found[pid] = member
    for child in _children(pid):
        _add(child, pid, without, found)


def _member(pid: int) -> Member | None:
    """Return what process ``pid`` is, or None when it has ended (waited for or not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold spaces and brackets
    if fields[0] in (b"Z", b"X"):
        return None
    return Member(pid, int(fields[19]), bool(int(fields[6]) & _FORKED))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def _same_memory(pid: int, parent: int) -> bool:
    """Return whether two processes are one memory: by ``kcmp``, else (forbidden in some containers) by their sizes."""
    number = _KCMP.get(platform.machine())
    if number is not None:
        answer = _libc.syscall(number, pid, parent, _KCMP_VM, 0, 0)
        if answer >= 0:
            return bool(answer == 0)
        if ctypes.get_errno() == 3:  # ESRCH: one of them has gone
            return True
    return _same_sizes(pid, parent)


def _same_sizes(pid: int, parent: int) -> bool:
    """Return whether two processes have the same sizes, all of them; a fork does not copy the pages of files."""
    sizes = []
    for process in (parent, pid, parent):
        with suppress(OSError):
            sizes.append(Path(f"/proc/{process}/statm").read_bytes().split())
    return len(sizes) < 3 or sizes[1] in (sizes[0], sizes[2])
