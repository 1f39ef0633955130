"""What a block may do with its residuals: the sets to keep and to spill that no other set beats.

A set costs bytes, held from the block's forward to its backward, and seconds, of recomputing what is missing and of
moving what is spilled. All sets are looked at; those that another one beats in bytes and in seconds are left out. What
a block holds while it runs does not decide here: its backward has every residual in memory, saved or recomputed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.ir.program import Node, Program
from memsim.models.graph import ModelGraph
from memsim.planner.arena import align
from memsim.planner.work import node_kind, node_work
from memsim.schedules.choices import BlockChoices
from memsim.simulator.device import Numbers
from memsim.simulator.roofline import op_time

MAX_SETS = 24
"""Sets a kind of block, at most."""

_MAX_UNITS = 18
"""Units that are looked at in every combination, at most; beyond it the smallest are not spilled, or not saved."""

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Unit:
    """Residuals that one node makes: they are saved together, or not.

    Attributes:
        spilled: Whether saving means the scratch file.
        moving_s: Seconds of writing and reading it there; 0 if it is kept.
    """

    names: frozenset[str]
    n_bytes: int
    spilled: bool = False
    moving_s: float = 0.0


def keep_sets(graph: ModelGraph, index: int, numbers: Numbers, max_sets: int = MAX_SETS) -> list[BlockChoices]:
    """Return the sets of residuals to save in a block like ``index``, from the smallest to the fastest.

    Args:
        graph: The model.
        index: A block of the kind.
        numbers: The device's rates.
        max_sets: If there are more, those are left out that lie closest to a mixture of their neighbours.
    """
    seconds = _node_seconds(graph, index, numbers)
    x, *others = _units(graph, index)
    others.sort(key=lambda unit: -unit.n_bytes)
    worth = _worth_spilling(others, seconds, numbers)
    ways = [x, _spilled(x, numbers), *others, *worth][:_MAX_UNITS]
    masks = np.arange(1 << len(ways), dtype=np.int64)
    taken = [masks >> bit & 1 == 1 for bit in range(len(ways))]
    valid = _block_input_saved_and_nothing_twice(ways, taken)
    n_bytes = sum((unit.n_bytes * on for unit, on in zip(ways, taken, strict=True) if not unit.spilled), 0 * masks)
    moving_s = sum((unit.moving_s * on for unit, on in zip(ways, taken, strict=True)), 0.0 * masks)
    time_s = moving_s + _recomputing_s(graph, index, ways, taken, seconds)
    # Whatever the rates: the input on disk and nothing else, with which a block holds least, and everything in memory.
    least, everything = 1 << 1, sum(1 << bit for bit, unit in enumerate(ways) if not unit.spilled)
    ends = np.isin(masks[valid], (least, everything))
    time_ps = np.round(time_s[valid] * 1e12).astype(np.int64)
    best = _corners(masks[valid], n_bytes[valid], time_ps, ends, max_sets)
    return [_chosen(ways, int(mask)) for mask in best]


def _block_input_saved_and_nothing_twice(ways: Sequence[_Unit], taken: Sequence[Bools]) -> Bools:
    valid = taken[0] | taken[1]
    for bit, unit in enumerate(ways):
        for other in range(bit):
            if unit.names == ways[other].names:
                valid &= ~(taken[bit] & taken[other])
    return valid


def _units(graph: ModelGraph, index: int) -> list[_Unit]:
    """Return the residuals of a block by the node that makes them, the block input first."""
    found = []
    segments = (graph.attention(index), graph.mlp(index=index))
    residuals = {segments[0].x, *(name for segment in segments for name in segment.backward.residuals)}
    for made, program in _makers(graph, index):
        names = frozenset(made) & residuals
        if names:
            found.append(_Unit(names, sum(align(program.values[name].n_bytes) for name in names)))
    return found


def _makers(graph: ModelGraph, index: int) -> Iterator[tuple[Sequence[str], Program]]:
    """Yield what each node of a block makes, the block input first."""
    attention, mlp = graph.attention(index), graph.mlp(index=index)
    yield [attention.x], attention.forward
    for program in (attention.forward, mlp.forward):
        for node in program.nodes:
            yield node.outputs, program


def _node_seconds(graph: ModelGraph, index: int, numbers: Numbers) -> list[tuple[Node, float]]:
    """Return the forward nodes of a block with their seconds."""
    found = []
    for program in (graph.attention(index).forward, graph.mlp(index=index).forward):
        for node in program.nodes:
            time = op_time(node_kind(node), node_work(program, node), numbers)
            found.append((node, time.compute_s + time.unpack_s))
    return found


def _spilled(unit: _Unit, numbers: Numbers) -> _Unit:
    """Return the unit on the scratch file: written once and read once, each piece by itself."""
    per_byte_s = 1 / numbers.flash_write_bytes_per_s + 1 / numbers.flash_read_bytes_per_s
    seconds = unit.n_bytes * per_byte_s + 2 * len(unit.names) * numbers.flash_latency_s
    return _Unit(unit.names, unit.n_bytes, spilled=True, moving_s=seconds)


def _worth_spilling(units: Sequence[_Unit], seconds: Sequence[tuple[Node, float]], numbers: Numbers) -> list[_Unit]:
    """Return those units, spilled, that are moved faster than they are recomputed from the block input."""
    made_in_s: dict[str, float] = {}
    upto: dict[str, frozenset[int]] = {}
    for number, (node, _) in enumerate(seconds):
        needs = frozenset({number}).union(*(upto.get(name, frozenset()) for name in node.inputs))
        upto |= dict.fromkeys(node.outputs, needs)
        made_in_s |= dict.fromkeys(node.outputs, sum(seconds[n][1] for n in needs))
    spilled = (_spilled(unit, numbers) for unit in units)
    return [unit for unit in spilled if unit.moving_s < max(made_in_s[name] for name in unit.names)]


def _recomputing_s(
    graph: ModelGraph, index: int, ways: Sequence[_Unit], taken: Sequence[Bools], seconds: Sequence[tuple[Node, float]]
) -> NDArray[np.float64]:
    """Return the seconds of recomputing what each set lacks."""
    saved: dict[str, Bools] = {}
    for unit, on in zip(ways, taken, strict=True):
        for name in unit.names:
            saved[name] = saved.get(name, np.zeros_like(on)) | on
    wanted = {
        name for segment in (graph.attention(index), graph.mlp(index=index)) for name in segment.backward.residuals
    }
    nothing = np.zeros_like(taken[0])
    missing = {name: ~saved.get(name, nothing) for name in wanted}
    total_s = np.zeros(nothing.shape)
    for node, node_s in reversed(seconds):
        runs = nothing.copy()
        for name in node.outputs:
            runs |= missing.get(name, nothing)
        for name in node.inputs:
            missing[name] = missing.get(name, nothing) | (runs & ~saved.get(name, nothing))
        total_s += node_s * runs
    return total_s


def _corners(masks: Integers, n_bytes: Integers, time_ps: Integers, ends: Bools, limit: int) -> Integers:
    """Return the sets that no other one beats, and ``ends``; at most ``limit`` of them."""
    order = np.lexsort((masks, time_ps, n_bytes))
    masks, n_bytes, time_ps, ends = masks[order], n_bytes[order], time_ps[order], ends[order]
    before = np.minimum.accumulate(np.concatenate(([np.iinfo(np.int64).max], time_ps[:-1])))
    better = (time_ps < before) | ends
    masks, n_bytes, time_ps, ends = masks[better], n_bytes[better], time_ps[better], ends[better]
    while len(masks) > max(limit, 2):
        # How far above the line between its neighbours a set lies: the lowest are worth most, the ends stay.
        width = np.maximum(n_bytes[2:] - n_bytes[:-2], 1)
        share = (n_bytes[1:-1] - n_bytes[:-2]) / width
        excess = time_ps[1:-1] - (time_ps[:-2] + share * (time_ps[2:] - time_ps[:-2]))
        drop = int(np.argmax(np.where(ends[1:-1], -np.inf, excess))) + 1
        masks, n_bytes, time_ps = (np.delete(values, drop) for values in (masks, n_bytes, time_ps))
        ends = np.delete(ends, drop)
    return masks[:limit]


def _chosen(ways: Sequence[_Unit], mask: int) -> BlockChoices:
    chosen: Mapping[bool, set[str]] = {True: set(), False: set()}
    for bit, unit in enumerate(ways):
        if mask >> bit & 1:
            chosen[unit.spilled].update(unit.names)
    return BlockChoices(keep=frozenset(chosen[False]), spill=frozenset(chosen[True]))
