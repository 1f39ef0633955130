"""Arena offsets: storage whose live ranges meet never shares bytes.

Each in turn at the lowest offset that is free for its whole life: largest first ("greedy by size" of Pisarchyk and Lee,
arXiv 2001.03288), then the same by bytes times lifetime and by lifetime; the smallest arena wins.
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
    """Return (offset of each storage, size of the arena in bytes): the best of a few orders."""
    orders = (
        lambda r: (-r.n_bytes, r.first, r.name),
        lambda r: (-r.n_bytes * (r.last - r.first + 1), r.first, r.name),
        lambda r: (r.first - r.last, -r.n_bytes, r.name),
    )
    return min((_place(sorted(ranges, key=order)) for order in orders), key=lambda placed: placed[1])


def _place(order: Sequence[LiveRange]) -> tuple[dict[str, int], int]:
    """Give each range, in this order, the lowest offset that is free for its whole life."""
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
