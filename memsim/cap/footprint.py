"""What a process costs in memory, read from the kernel. Used after every node, so small and only standard library.

The footprint is the memory that the kernel cannot take back without swapping or writing: anonymous pages, shared
memory, dirty file pages, pages being written, and swap. Clean file pages (mapped weights, library text) are not in it.
"""

import os
import re
from pathlib import Path

AGE_S = 0.005
"""How old a reading in the node loop may be even if nothing seems to have changed."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_READ_BYTES = 1 << 16  # memory.stat is 1 to 4 KB; one read must hold it all, since two reads are two moments
# Nothing is counted twice: `rss` of version 1 is anonymous pages only, and shared memory, though inside `cache`, is
# never in `dirty`. `mapped_file` and the rest of `cache` are clean, and left out.
_V1_FIELDS = re.compile(rb"^(?:rss|shmem|dirty|writeback|swap) (\d+)$", re.MULTILINE)
_V2_FIELDS = re.compile(rb"^(?:anon|shmem|file_dirty|file_writeback) (\d+)$", re.MULTILINE)
_KB_LINE = re.compile(rb"^(\w+):\s+(\d+) kB$", re.MULTILINE)


class GroupFootprint:
    """Reads the footprint of a memory cgroup, keeping its files open; a read costs some ten microseconds.

    The kernel adds its per-CPU counters up lazily: a reading may be off by `group_error_bytes()`.
    """

    def __init__(self, group: Path):
        """Open the files of ``group``, which may be version 1 or version 2.

        Raises:
            OSError: The group does not exist or its ``memory.stat`` cannot be read.
        """
        is_v1 = (group / "memory.limit_in_bytes").exists()
        self._fields = _V1_FIELDS if is_v1 else _V2_FIELDS
        self._stat = os.open(group / "memory.stat", os.O_RDONLY | os.O_CLOEXEC)
        self._swap: int | None = None
        if not is_v1 and (group / "memory.swap.current").exists():
            self._swap = os.open(group / "memory.swap.current", os.O_RDONLY | os.O_CLOEXEC)

    def read_bytes(self) -> int:
        """Return the footprint of the group in bytes.

        Raises:
            OSError: The group was removed.
        """
        footprint = sum(map(int, self._fields.findall(os.pread(self._stat, _READ_BYTES, 0))))
        if self._swap is not None:
            footprint += int(os.pread(self._swap, _READ_BYTES, 0))
        return footprint

    def close(self) -> None:
        """Close the files; calling it again does nothing."""
        for descriptor in (self._stat, self._swap):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._stat, self._swap = -1, None


class NodeFootprint:
    """The footprint of this process for the node loop, where thousands of reads a second would be felt.

    The group is read whenever this process's anonymous pages (resident minus file and shared, a read of 0.9 us) are not
    what they were at the last reading, and otherwise every ``AGE_S``: between two readings, what the process holds
    cannot have grown but by dirty file pages, which come and go within a node and are for the sampler to see, and by
    the few pages that the kernel's own counters are late by (a batch of 32 for each processor).
    """

    def __init__(self, group: GroupFootprint):
        """Prepare to read ``group``, which holds this process alone."""
        self._group = group
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._pages = -1
        self._footprint_bytes = 0
        self._read_s = 0.0

    def read_bytes(self, now_s: float) -> int:
        """Return the footprint in bytes.

        Args:
            now_s: ``time.perf_counter()``.
        """
        _, resident, shared, _ = os.pread(self._statm, _READ_BYTES, 0).split(None, 3)
        pages = int(resident) - int(shared)
        if pages != self._pages or now_s - self._read_s > AGE_S:
            self._pages, self._read_s = pages, now_s
            self._footprint_bytes = self._group.read_bytes()
        return self._footprint_bytes


def group_error_bytes() -> int:
    """Return how far a group's reading may be off: per CPU, two batches of 64 pages not yet added up."""
    return 2 * 64 * (os.cpu_count() or 1) * _PAGE_BYTES


class ProcessStatus:
    """Reads cheap figures of one process (a few microseconds each), keeping ``status`` and ``stat`` open."""

    def __init__(self, pid: int | str = "self", proc: Path = Path("/proc")):
        """Open the files of process ``pid``.

        Raises:
            OSError: There is no such process.
        """
        self._status = os.open(proc / str(pid) / "status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._stat = os.open(proc / str(pid) / "stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._status)
            raise

    def sizes_bytes(self) -> dict[str, int]:
        """Return the sizes of ``status`` by name: ``VmHWM``, ``VmRSS``, ``VmData``, ``RssAnon``, ``VmSwap`` and so on.

        A process that has ended but was not waited for has none of them.

        Raises:
            OSError: The process has gone.
        """
        lines = _KB_LINE.findall(os.pread(self._status, _READ_BYTES, 0))
        return {name.decode(): int(kilobytes) << 10 for name, kilobytes in lines}

    def major_faults(self) -> int:
        """Return how many page faults of the process, all threads, had to read from a disk.

        Raises:
            OSError: The process has gone.
        """
        return int(_stat_fields(os.pread(self._stat, _READ_BYTES, 0))[9])

    def close(self) -> None:
        """Close the files; calling it again does nothing."""
        for descriptor in (self._status, self._stat):
            if descriptor >= 0:
                os.close(descriptor)
        self._status = self._stat = -1


def process_footprint(pid: int | str = "self", proc: Path = Path("/proc")) -> int:
    """Return the footprint of one process in bytes: Swap + max(Anonymous, Private_Dirty + Shared_Dirty).

    It walks the page tables (milliseconds in a large process), so it has no place in the node loop, and it sees dirty
    file pages only where they are mapped. The file is opened anew every time: open, it stays bound to the memory of
    the program that ran then, and the worker's process id has run a shell before.

    Raises:
        OSError: The process has gone, may not be read, or the kernel has no ``smaps_rollup``.
    """
    with (proc / str(pid) / "smaps_rollup").open("rb", buffering=0) as file:
        sizes = {name: int(kilobytes) << 10 for name, kilobytes in _KB_LINE.findall(file.read(_READ_BYTES))}
    dirty = sizes.get(b"Private_Dirty", 0) + sizes.get(b"Shared_Dirty", 0)
    return sizes.get(b"Swap", 0) + max(sizes.get(b"Anonymous", 0), dirty)


def start_time(pid: int | str = "self", proc: Path = Path("/proc")) -> int | None:
    """Return when process ``pid`` started, in clock ticks since boot, or None when it has ended (waited for or not).

    A process id is used again, a process id with its start time is not.
    """
    try:
        fields = _stat_fields((proc / str(pid) / "stat").read_bytes())
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def parent_pid(pid: int | str = "self", proc: Path = Path("/proc")) -> int | None:
    """Return the parent of process ``pid``, or None when there is no such process."""
    try:
        return int(_stat_fields((proc / str(pid) / "stat").read_bytes())[1])
    except OSError:
        return None


def _stat_fields(stat: bytes) -> list[bytes]:
    """Return the fields of ``/proc/PID/stat`` after the name, which is in brackets and may hold spaces and brackets."""
    return stat[stat.rindex(b")") + 2 :].split()
