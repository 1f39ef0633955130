"""The memory through which SCRATCH values pass, and how far ahead of the step they are read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memsim.ir.op import Effect
from memsim.ir.ops import effect_of
from memsim.ir.program import Program, Space

READ_AHEAD = 2
"""Copied values that are asked for before they are needed: the adapters and the input of a block."""

N_SLOTS = 2
"""Slots for what is copied out: one is filled while the other is written."""

_SLOT_BYTES = 512 << 10
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Staging:
    """Anonymous memory beside the arena, in whole disk blocks.

    Attributes:
        window_bytes: Holds the value that a node changes in place, and until it is written.
        slot_bytes: Each of the ``N_SLOTS`` through which spilled and stored values leave, piece by piece.
    """

    window_bytes: int
    slot_bytes: int

    @property
    def n_bytes(self) -> int:
        """All of it."""
        return self.window_bytes + N_SLOTS * self.slot_bytes


def staging(programs: Iterable[Program]) -> Staging:
    """Return what the programs of one session need together."""
    window = largest_write = 0
    for program in programs:
        for name in program.inputs:  # what outlives a step: paged adapters, optimizer state
            if program.values[name].space is Space.SCRATCH:
                window = max(window, program.values[name].n_bytes)
        for node in program.nodes:
            if effect_of(node) & Effect.COPIES_OUT:
                largest_write = max(largest_write, sum(program.values[name].n_bytes for name in node.outputs))
    return staging_for(window, largest_write)


def staging_for(largest_in_place: int, largest_write: int) -> Staging:
    """Return what values need of which the largest changed in place, and the largest written, have so many bytes."""
    return Staging(whole_blocks(largest_in_place), min(_SLOT_BYTES, whole_blocks(-(-largest_write // N_SLOTS))))


def scratch_reads(program: Program, in_place: bool) -> list[tuple[int, str]]:
    """Return (node, SCRATCH value) for each node that changes one in place, or for each that copies one out."""
    found = []
    for index, node in enumerate(program.nodes):
        effect = effect_of(node)
        if not effect & (Effect.REPLACES | Effect.GATHERS) and (not effect & Effect.COPIES_IN) == in_place:
            names = (name for name in node.inputs if program.values[name].space is Space.SCRATCH)
            found += [(index, name) for name in names]
    return found


def read_ahead_bytes(program: Program) -> int:
    """Return the most bytes of copied values that are read or asked for at once: clean file pages."""
    return most_read_ahead([program.values[name].n_bytes for _, name in scratch_reads(program, in_place=False)])


def most_read_ahead(sizes: Sequence[int]) -> int:
    """Return the same of a sequence of copies of so many bytes."""
    return max((sum(sizes[index : index + 1 + READ_AHEAD]) for index in range(len(sizes))), default=0)


def whole_blocks(n_bytes: int) -> int:
    """Round up to whole disk blocks, the unit of writing past the page cache."""
    return -(-n_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
