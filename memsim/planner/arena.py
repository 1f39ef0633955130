"""Arena offsets: storage whose live ranges meet never shares bytes.

Each in turn at the lowest offset that is free for its whole life: largest first ("greedy by size" of Pisarchyk and Lee,
arXiv 2001.03288), then the same by bytes times lifetime and by lifetime; the smallest arena wins.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from memsim.planner.liveness import LiveRange

ALIGNMENT = 64
"""Bytes: one cache line, one AVX-512 register."""

_NO_LIMIT = 1 << 62


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
    best: tuple[dict[str, int], int] = ({}, _NO_LIMIT)
    fullest = _most_live(ranges)
    for order in orders:
        if best[1] > fullest:  # no order gives an arena below what is live at once
            best = _place(sorted(ranges, key=order), best[1]) or best
    return best


def _most_live(ranges: Sequence[LiveRange]) -> int:
    steps: dict[int, int] = {}
    for item in ranges:
        steps[item.first] = steps.get(item.first, 0) + align(item.n_bytes)
        steps[item.last + 1] = steps.get(item.last + 1, 0) - align(item.n_bytes)
    return max(accumulate(steps[index] for index in sorted(steps)), default=0)


def _place(order: Sequence[LiveRange], limit_bytes: int) -> tuple[dict[str, int], int] | None:
    """Give each range, in this order, the lowest offset that is free for its whole life.

    Returns:
        The offsets and the arena's size; None as soon as it is not below ``limit_bytes``.
    """
    first, last, begin, end = (np.zeros(len(order), np.int64) for _ in range(4))
    offsets: dict[str, int] = {}
    size = 0
    for count, item in enumerate(order):
        meets = ((first[:count] <= item.last) & (last[:count] >= item.first)).nonzero()[0]
        n_bytes = align(item.n_bytes)
        offset = _lowest_gap(begin[meets], end[meets], n_bytes)
        first[count], last[count] = item.first, item.last
        begin[count], end[count] = offset, offset + n_bytes
        offsets[item.name] = offset
        size = max(size, offset + n_bytes)
        if size >= limit_bytes:
            return None
    return offsets, size


def _lowest_gap(begin: NDArray[np.int64], end: NDArray[np.int64], size: int) -> int:
    """Return the lowest offset where ``size`` bytes fit between the intervals [begin, end)."""
    if not len(begin):
        return 0
    order = begin.argsort(kind="stable")
    begin = begin[order]
    if begin[0] >= size:
        return 0
    # Up to each interval, everything below `reach` is taken or was too small a gap.
    reach = np.maximum.accumulate(end[order])
    fits = begin[1:] - reach[:-1] >= size
    at = int(fits.argmax()) if len(fits) else 0
    return int(reach[at] if len(fits) and fits[at] else reach[-1])
