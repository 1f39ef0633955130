"""The file pages that stay in memory: least recently used first out, in clusters."""

from collections import OrderedDict
from collections.abc import Iterable

Key = tuple[str, int]
"""A file and the number of a cluster in it."""


class PageCache:
    """File pages in what RAM is left.

    Args:
        capacity_bytes: May be set lower at any time, when a process grows.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._entries: OrderedDict[Key, int] = OrderedDict()
        self._capacity_bytes = capacity_bytes
        self.held_bytes = 0

    def resize(self, capacity_bytes: int) -> None:
        """Give or take memory; the least recently used clusters go first."""
        self._capacity_bytes = max(capacity_bytes, 0)
        self._shrink()

    def missing(self, clusters: Iterable[tuple[Key, int]]) -> list[int]:
        """Touch ``clusters`` (key, bytes) in order; return the bytes of those that had to be read."""
        read = []
        for key, n_bytes in clusters:
            held = self._entries.pop(key, 0)
            if held < n_bytes:
                read.append(n_bytes - held)
                self.held_bytes += n_bytes - held
            self._entries[key] = max(held, n_bytes)
            self._shrink()
        return read

    def drop(self, file: str) -> None:
        """Forget the pages of ``file``, as ``posix_fadvise(POSIX_FADV_DONTNEED)`` does."""
        for key in [key for key in self._entries if key[0] == file]:
            self.held_bytes -= self._entries.pop(key)

    def _shrink(self) -> None:
        while self.held_bytes > self._capacity_bytes and self._entries:
            self.held_bytes -= self._entries.popitem(last=False)[1]
