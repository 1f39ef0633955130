"""Arena offsets: storage whose live ranges meet never shares bytes.

Largest first, each at the lowest offset that is free for its whole life. (Pisarchyk and Lee, "Efficient Memory
Management for Deep Neural Net Inference", arXiv 2001.03288, "greedy by size".)
"""

from collections.abc import Sequence

import numpy as np

from memsim.planner.liveness import LiveRange

ALIGNMENT = 64
"""Bytes: one cache line, one AVX-512 register."""


def align(n_bytes: int) -> int:
    """Round up to a multiple of :data:`ALIGNMENT`."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def assign_offsets(ranges: Sequence[LiveRange]) -> tuple[dict[str, int], int]:
    """Return (offset of each storage, size of the arena in bytes)."""
    order = sorted(ranges, key=lambda r: (-r.n_bytes, r.first, r.name))
    first, last, begin, end = (np.zeros(len(order), np.int64) for _ in range(4))
    offsets: dict[str, int] = {}
    for count, item in enumerate(order):
        meets = np.flatnonzero((first[:count] <= item.last) & (last[:count] >= item.first))
        offset = _lowest_gap(begin[meets], end[meets], align(item.n_bytes))
        first[count], last[count] = item.first, item.last
        begin[count], end[count] = offset, offset + align(item.n_bytes)
        offsets[item.name] = offset
    return offsets, int(end.max(initial=0))


def _lowest_gap(begin: np.ndarray, end: np.ndarray, size: int) -> int:
    """Return the lowest offset where ``size`` bytes fit between the intervals [begin, end)."""
    order = np.argsort(begin, kind="stable")
    # Up to each interval, everything below `reach` is taken or was too small a gap.
    reach = np.concatenate(([0], np.maximum.accumulate(end[order])))
    gaps = np.concatenate((begin[order], [np.iinfo(np.int64).max])) - reach
    return int(reach[int(np.argmax(gaps >= size))])
