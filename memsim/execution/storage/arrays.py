"""Arrays of a program's values: in one arena, or one allocation a value."""

import contextlib
import mmap
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from memsim.execution.storage.mapped_weights import NUMPY_DTYPES, Array
from memsim.ir.program import Program, Space, Value
from memsim.ir.serialize import PlacedProgram
from memsim.planner.arena import align
from memsim.planner.liveness import arena_ranges

Buffer = mmap.mmap | Array
Allocate = Callable[[str, int], Buffer]
"""Called with the name of a value and a number of bytes, the memory of which it returns."""


class ArenaStorage(Protocol):
    """Gives ARENA values their arrays, by the name of their storage.

    Attributes:
        held: The arrays that there are, which need not be asked for.
    """

    held: dict[str, Array]

    def array(self, root: str) -> Array:
        """Return the array of storage ``root``, which is live."""

    def release(self, index: int) -> None:
        """Note that node ``index`` has run."""


class PlannedArena:
    """Every value at its planned offset in one anonymous mapping.

    Args:
        placed: The program; several programs may share one ``buffer``.
        buffer: At least ``placed.arena_bytes`` bytes.
        poison: Fill storage with NaN after its last use, so that a value freed too early changes the result.
    """

    def __init__(self, placed: PlacedProgram, buffer: mmap.mmap, poison: bool = False) -> None:
        self._values = placed.program.values
        self._offsets = placed.offsets
        self._buffer = buffer
        self.held: dict[str, Array] = {}
        self._ending = _endings(placed.program) if poison else {}

    def array(self, root: str) -> Array:
        """Return the view of storage ``root``."""
        if root not in self.held:
            self.held[root] = _view(self._buffer, self._values[root], self._offsets[root])
        return self.held[root]

    def release(self, index: int) -> None:
        """Poison what dies with node ``index``, if asked to."""
        for root in self._ending.get(index, ()):
            self.array(root).view(np.uint8).fill(0xFF)


class SeparateArrays:
    """One allocation a value, made at its definition and freed after its last use.

    Args:
        program: Whose values are held.
        keep_all: Free nothing.
        allocate: Makes the allocations.

    Attributes:
        live_bytes: Bytes allocated now, aligned as the planner counts them.
    """

    def __init__(self, program: Program, keep_all: bool = False, allocate: Allocate | None = None) -> None:
        self._values = program.values
        self._allocate = allocate or _allocate
        self.held: dict[str, Array] = {}
        self._ending = {} if keep_all else _endings(program)
        self.live_bytes = 0

    def array(self, root: str) -> Array:
        """Return the array of storage ``root``, allocated on first use."""
        if root not in self.held:
            value = self._values[root]
            n_bytes = align(value.n_bytes)
            self.held[root] = _view(self._allocate(root, n_bytes), value, 0)
            self.live_bytes += n_bytes
        return self.held[root]

    def release(self, index: int) -> None:
        """Free what dies with node ``index``."""
        for root in self._ending.get(index, ()):
            if self.held.pop(root, None) is not None:
                self.live_bytes -= align(self._values[root].n_bytes)


def anonymous(n_bytes: int) -> mmap.mmap:
    """Return zeroed anonymous memory of this process alone."""
    return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def allocate_arena(n_bytes: int) -> mmap.mmap:
    """Return zeroed anonymous memory; its pages count only once they are touched.

    Huge pages, where the kernel gives them: rows of an activation lie pages apart, and a step spends a tenth of its
    time on looking up addresses otherwise. The kernel places what is larger than one such that none is used in part.
    """
    buffer = anonymous(max(n_bytes, 1))
    with contextlib.suppress(OSError):  # a kernel built without them
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def allocate_pinned(programs: Mapping[str, Program], allocate: Allocate | None = None) -> dict[str, Array]:
    """Return the arrays of every PINNED source of ``programs``, zeroed.

    Args:
        programs: Programs of one session.
        allocate: Makes an allocation for each source; None makes one for all.
    """
    values = {
        value.source: value
        for program in programs.values()
        for value in program.values.values()
        if value.space is Space.PINNED and not value.alias_of
    }
    arrays: dict[str, Array] = {}
    if allocate is not None:
        for source, value in values.items():
            arrays[source] = _view(allocate(source, value.n_bytes), value, 0)
            arrays[source].fill(0)
        return arrays
    buffer = allocate_arena(sum(align(value.n_bytes) for value in values.values()))
    offset = 0
    for source, value in values.items():
        arrays[source] = _view(buffer, value, offset)
        offset += align(value.n_bytes)
    return arrays


def _allocate(name: str, n_bytes: int) -> Buffer:
    return np.empty(n_bytes, np.uint8)


def _view(buffer: Buffer, value: Value, offset: int) -> Array:
    # Straight on the buffer, not a view of a view: there are thousands, and each is Python objects under the cap.
    return np.ndarray(value.type.shape, NUMPY_DTYPES[value.type.dtype], buffer, offset)


def _endings(program: Program) -> dict[int, tuple[str, ...]]:
    """Return node index -> storage that dies after it; program outputs never do."""
    keep = {program.root(name) for name in program.outputs if program.values[name].space is Space.ARENA}
    endings: dict[int, list[str]] = {}
    for item in arena_ranges(program):
        if item.name not in keep:
            endings.setdefault(item.last, []).append(item.name)
    return {index: tuple(roots) for index, roots in endings.items()}
