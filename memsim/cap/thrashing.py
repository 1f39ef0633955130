"""The thrashing rule: a worker that finishes no node for a while although it keeps reading its pages from the disk."""

from collections import deque

STALL_S = 30.0
_PARTS = 30


class Stall:
    """The time since the last finished node, and in which parts of it the major faults rose.

    A long computation has some faults too, at its start; "climbing" means a rise in half of the last thirty parts.
    """

    def __init__(self, now_s: float, stall_s: float = STALL_S):
        """Start at ``now_s``; a worker may finish no node for ``stall_s`` seconds."""
        self._stall_s = stall_s
        self._faults = 0
        self._rose: deque[bool] = deque(maxlen=_PARTS)
        self.node_done(now_s)

    def node_done(self, now_s: float) -> None:
        """Start anew: a node was finished."""
        self._last_node_s = self._part_start_s = now_s
        self._part_start_faults = self._faults
        self._rose.clear()

    def is_over(self, now_s: float, major_faults: int) -> bool:
        """Take note of the faults so far, and return whether the worker is thrashing."""
        self._faults = major_faults
        if now_s - self._part_start_s >= self._stall_s / _PARTS:
            self._rose.append(major_faults > self._part_start_faults)
            self._part_start_s, self._part_start_faults = now_s, major_faults
        return now_s - self._last_node_s >= self._stall_s and sum(self._rose) >= _PARTS / 2
