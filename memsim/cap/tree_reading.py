"""What the processes of a tree hold at one moment: anonymous, shared and swapped pages, each page once.

A process that shares nothing is read from ``status``, in microseconds. Where pages may be shared (it was forked, it has
forked, it has shared memory), ``smaps_rollup`` tells its part of them, in milliseconds where there are many.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memsim.cap.process_tree import Member, members
from memsim.errors import WorkerError

_KB_LINE = re.compile(rb"^(\w+):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reading:
    """One process at one moment.

    Attributes:
        held_bytes: Its pages that no file backs; of pages that n processes share, an n-th.
        alone_bytes: A share that no other process can change: of a forked process what is its own, of others all.
        beside_bytes: Resident pages that are not in ``held_bytes``: those of files, and the shares of others.
        mark_bytes: The most that was ever resident since the kernel's mark was reset (``VmHWM``).
    """

    held_bytes: int
    alone_bytes: int
    beside_bytes: int
    mark_bytes: int


@dataclass(frozen=True, slots=True)
class TreeReading:
    """A tree at one moment.

    Attributes:
        processes: By process; a ``Member`` that executes another program is another one.
        stood_still: Whether no process that shares pages ended meanwhile: only then do the shares add up.
    """

    processes: dict[Member, Reading]
    stood_still: bool

    def bytes_of(self, member: Member) -> int:
        """Return what one process adds to the tree."""
        reading = self.processes[member]
        return reading.held_bytes if self.stood_still else reading.alone_bytes

    @property
    def held_bytes(self) -> int:
        """What the tree holds; less than that, when it did not stand still."""
        return sum(map(self.bytes_of, self.processes))


def read_tree(root: int, without: int, known: Sequence[Member]) -> TreeReading:
    """Read a tree, parents before their children, so that what is handed down meanwhile is not counted twice.

    Raises:
        WorkerError: A process that shares pages may not be read.
    """
    tree = members(root, without, list(known))
    sharing = any(member.forked for member in tree[1:])
    found: dict[Member, Reading] = {}
    for member in tree:
        if (reading := _read(member.pid, member.forked and member.pid != root, sharing, len(tree) == 1)) is not None:
            found[member] = reading
    still = True
    if sharing:
        after = set(members(root, without, tree))
        # Pages shared with processes outside the tree are theirs too: those shares never add up.
        still = after.issuperset(member for member in tree if member.forked) and not tree[0].forked
    return TreeReading(found, still)


def _read(pid: int, forked: bool, sharing: bool, only: bool) -> Reading | None:
    """Read one process; None when it has ended.

    Raises:
        WorkerError: Its shares may not be read, or the kernel does not tell them.
    """
    sizes = _sizes(Path(f"/proc/{pid}/status"))
    if sizes is None or b"VmRSS" not in sizes:
        return None
    resident, mark = sizes[b"VmRSS"], sizes.get(b"VmHWM", 0)
    held = sizes[b"RssAnon"] + sizes[b"RssShmem"] + sizes.get(b"VmSwap", 0)
    if not sharing and (only or not sizes[b"RssShmem"]):
        return Reading(held, held, resident - held, mark)
    shares = _sizes(Path(f"/proc/{pid}/smaps_rollup"))
    if shares is None:
        return None
    if b"Pss_Anon" not in shares:
        raise WorkerError("this kernel does not tell the shares of a process (Pss_Anon; Linux 5.4 does)")
    shared_memory, swap = shares[b"Pss_Shmem"], shares.get(b"SwapPss", 0)
    held = shares[b"Pss_Anon"] + shared_memory + swap
    alone = (shares[b"Private_Dirty"] if forked else shares[b"Anonymous"] + shared_memory) + swap
    return Reading(held, alone, shares[b"Rss"] - held, mark)


def _sizes(path: Path) -> dict[bytes, int] | None:
    """Return the sizes of a file of ``/proc`` by name, or None when its process has ended.

    Raises:
        WorkerError: It may not be read.
    """
    try:
        return {name: int(kilobytes) << 10 for name, kilobytes in _KB_LINE.findall(path.read_bytes())}
    except PermissionError as error:
        raise WorkerError(f"cannot read {path}: {error.strerror}") from error
    except OSError:
        return None


def reset_marks(tree: Sequence[Member]) -> list[int]:
    """Reset the kernel's high-water marks; return the processes whose marks cannot be reset."""
    kept = [member.pid for member in tree]
    for member in tree:
        with suppress(OSError):
            Path(f"/proc/{member.pid}/clear_refs").write_text("5")
            kept.remove(member.pid)
    return kept
