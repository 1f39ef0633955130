"""The memory of a run without an arena: recordings make an allocation a value, through the C library."""

from dataclasses import replace

import numpy as np

from memsim.ir.program import Program
from memsim.planner.arena import align
from memsim.planner.liveness import arena_ranges
from memsim.planner.plan import MemoryPlan
from memsim.units import MIB

_MUCH_BYTES = 64 * MIB
_HOLES = 1.25
"""What the heap takes over what is live in it at once. Measured: 1.3 where all is in the heap (16 MB, ``tiled``), 1.1
where little is (18 MB, ``mebp`` and ``backprop``)."""


def mapped_from_bytes(plan: MemoryPlan) -> int:
    """Return from which size on blocks are mapped one by one, and gone when they are freed; smaller ones share a heap.

    A fresh page costs time and a hole in the heap costs memory: a run that holds little can afford the holes.
    """
    return 256 << 10 if int(plan.live_bytes.max(initial=0)) > _MUCH_BYTES else 4 * MIB


def in_separate_arrays(program: Program, plan: MemoryPlan) -> MemoryPlan:
    """Return ``plan``, the plan of ``program``, for an allocation a value instead of an arena.

    The heap keeps what it has reached, so its peak counts beside that of the mapped blocks, with its holes.
    """
    limit = mapped_from_bytes(plan)
    heap, mapped = np.zeros((2, len(program.nodes) + 1), np.int64)
    for item in arena_ranges(program):
        held = mapped if align(item.n_bytes) >= limit else heap
        held[item.first] += align(item.n_bytes)
        held[item.last + 1] -= align(item.n_bytes)
    heap_bytes, mapped_bytes = (int(held.cumsum().max()) for held in (heap, mapped))
    return replace(plan, offsets={}, arena_bytes=mapped_bytes + align(int(_HOLES * heap_bytes)))
