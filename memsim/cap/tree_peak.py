"""The peak of a tree of processes since a moment, from readings and from the kernel's marks between them."""

from memsim.cap.process_tree import Member
from memsim.cap.tree_reading import TreeReading
from memsim.units import MIB


class TreePeak:
    """The most that a tree held beyond what it held at first.

    What was there at first is the zero. When a process that was there ends, what it alone held leaves the zero too.

    Attributes:
        sampled_bytes: The highest of the readings.
        peak_bytes: The same with what the kernel's marks say of the time between two readings.
    """

    def __init__(self, first: TreeReading) -> None:
        """Take ``first`` as the zero."""
        self._first = first
        self._last = first
        self.sampled_bytes = self.peak_bytes = 0

    @property
    def known(self) -> list[Member]:
        """The processes of the last reading."""
        return list(self._last.processes)

    def add(self, now: TreeReading) -> None:
        """Count one more reading."""
        taken = now.held_bytes - self._zero_bytes(now)
        between = sum(self._between_bytes(now, member) for member in now.processes)
        self.sampled_bytes = max(self.sampled_bytes, taken)
        self.peak_bytes = max(self.peak_bytes, taken + between)
        self._last = now

    def _zero_bytes(self, now: TreeReading) -> int:
        gone = self._first.processes.keys() - now.processes.keys()
        return self._first.held_bytes - sum(self._first.processes[member].alone_bytes for member in gone)

    def _between_bytes(self, now: TreeReading, member: Member) -> int:
        """Return what a process held between two readings beyond what it holds now, by the kernel's mark.

        The mark counts resident pages, those of files too. They are taken off as they are at both ends; when there are
        fewer now than before, the mark may be of pages of files that are mapped no longer, and says nothing. Nor does
        it in a tree that did not stand still, where nobody knows what of it is shared.
        """
        if not now.stood_still:
            return 0
        reading, before = now.processes[member], self._last.processes.get(member)
        if before is not None and (
            reading.mark_bytes <= before.mark_bytes or reading.beside_bytes < before.beside_bytes - MIB
        ):
            return 0
        return max(0, reading.mark_bytes - reading.beside_bytes - now.bytes_of(member))
