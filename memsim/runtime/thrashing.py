"""The thrashing rule: a worker that finishes no node for a while although it keeps reading its pages from the disk."""

STALL_S = 30.0
_PARTS = 30


class Stall:
    """The time since the last finished node, and in how many parts of it the major faults rose.

    A long computation has some faults too, at its start; "climbing" means a rise in half of the parts of the stall.
    """

    def __init__(self, now_s: float, stall_s: float = STALL_S):
        """Start at ``now_s``; a worker may finish no node for ``stall_s`` seconds."""
        self._stall_s = stall_s
        self._faults = 0
        self.node_done(now_s)

    def node_done(self, now_s: float) -> None:
        """Start anew: a node was finished."""
        self._last_node_s = self._part_start_s = now_s
        self._part_start_faults = self._faults
        self._parts_climbing = 0

    def is_over(self, now_s: float, major_faults: int) -> bool:
        """Take note of the faults so far, and return whether the worker is thrashing."""
        self._faults = major_faults
        if now_s - self._part_start_s >= self._stall_s / _PARTS:
            self._parts_climbing += major_faults > self._part_start_faults
            self._part_start_s, self._part_start_faults = now_s, major_faults
        return now_s - self._last_node_s >= self._stall_s and self._parts_climbing >= _PARTS / 2
