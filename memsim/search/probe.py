"""What each way of treating a block costs, read from small models that are really lowered.

Blocks of a kind run the same program, so a block's numbers do not depend on how many there are, nor on what the others
save: a model of one block for each way of treating it tells them all. With them the live bytes and the seconds of any
mixture are sums and maxima (see ``front``); tests hold these to the planner and the simulator.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memsim.ir.op import Effect
from memsim.ir.ops import effect_of
from memsim.ir.program import Program, Space
from memsim.models.graph import ModelGraph
from memsim.models.parts import block_part
from memsim.planner.arena import align
from memsim.planner.liveness import arena_ranges
from memsim.planner.plan import most_together
from memsim.schedules.choices import Choices
from memsim.schedules.lowering import lower
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.device import Numbers, Rule
from memsim.simulator.pagecache import Key, PageCache
from memsim.simulator.trace import StepTrace, TraceNode, file_sizes, trace_node
from memsim.simulator.walk import walk

Traced = dict[tuple[object, ...], TraceNode]
"""Nodes that were traced, by all that decides what they do but where they stand."""


@dataclass(frozen=True, slots=True)
class BlockCost:
    """One way of treating one kind of block.

    Attributes:
        kept_bytes: Held from its forward to its backward.
        local_bytes: The most that it holds while it runs, either way, beyond what blocks below it keep.
        time_ps: Picoseconds, forward, backward and update; whole numbers, so that sums are exact.
        n_nodes: Nodes of a step.
        pinned_bytes: Its adapters and optimizer state, if they are held all step.
        restored: Bytes of each value that it reads back from the scratch file, in their order.
    """

    kept_bytes: int
    local_bytes: int
    time_ps: int
    n_nodes: int
    pinned_bytes: int
    restored: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FrameCost:
    """The step around the blocks.

    Attributes:
        base_bytes: Arena bytes that every block finds: its input, the labels, summed gradients.
        other_bytes: The most arena bytes held outside the micro-batch's blocks and head.
        head_bytes: The most that the head holds beyond the base and what blocks keep.
        time_ps: Picoseconds of embedding and head.
        n_nodes: Nodes that are of no block.
        pinned_bytes: Constants, and of embedding and head what blocks have of their own.
        together_bytes: The most weight bytes that are wanted at the same time.
    """

    base_bytes: int
    other_bytes: int
    head_bytes: int
    time_ps: int
    n_nodes: int
    pinned_bytes: int
    together_bytes: int


@dataclass(frozen=True, slots=True)
class Probe:
    """A lowered model: its blocks in order, and what is around them."""

    frame: FrameCost
    blocks: tuple[BlockCost, ...]


def shortened(graph: ModelGraph, kinds: Sequence[int]) -> ModelGraph:
    """Return the model whose blocks are of the kinds of these blocks of ``graph``; the first is its first."""
    types = tuple(graph.config.layer_type(index) for index in kinds)
    config = replace(
        graph.config, num_hidden_layers=len(kinds), layer_types=types if graph.config.layer_types else None
    )
    return replace(graph, config=config, packing=graph.formats.with_blocks([block_part(index) for index in kinds]))


def probe(
    graph: ModelGraph,
    choices: Choices,
    optimizer: OptimizerConfig,
    numbers: Numbers | None,
    rule: Rule,
    traced: Traced | None = None,
) -> Probe:
    """Lower the whole of ``graph`` and take it apart.

    Seconds are those of a step that finds every file page in memory; without ``numbers`` they are all 0. ``traced`` are
    nodes of earlier probes of the same model.
    """
    program = lower(graph, choices, optimizer)
    live, pinned = _live_bytes(program), _pinned(program)
    seconds = np.zeros(len(program.nodes)) if numbers is None else node_seconds(program, numbers, rule, traced)
    time_ps = np.round(seconds * 1e12).astype(np.int64)
    repeat = program.repeat
    start, stop = (repeat.start, repeat.stop) if repeat else (0, len(program.nodes))
    parts = [block_part(index) for index in range(graph.config.num_hidden_layers)]
    nodes_of = _nodes_by_part(program, (*parts, "head"))
    inside = {part: [index for index in nodes if start <= index < stop] for part, nodes in nodes_of.items()}
    at_start = [int(live[nodes[0]]) for nodes in inside.values()]
    blocks = tuple(
        BlockCost(
            kept_bytes=at_start[index + 1] - at_start[index],
            local_bytes=int(live[inside[part]].max()) - at_start[index],
            time_ps=int(time_ps[nodes_of[part]].sum()),
            n_nodes=len(nodes_of[part]),
            pinned_bytes=pinned.get(part, 0),
            restored=_restored(program, nodes_of[part]),
        )
        for index, part in enumerate(parts)
    )
    outside = np.ones(len(program.nodes), np.bool_)
    outside[[index for part in parts for index in nodes_of[part]]] = False
    elsewhere = np.concatenate((live[: inside[parts[0]][0]], live[stop:]))
    frame = FrameCost(
        base_bytes=at_start[0],
        other_bytes=int(elsewhere.max(initial=0)),
        head_bytes=int(live[inside["head"]].max()) - at_start[-1],
        time_ps=int(time_ps[outside].sum()),
        n_nodes=int(outside.sum()),
        pinned_bytes=sum(pinned.values()) - sum(block.pinned_bytes for block in blocks),
        together_bytes=most_together(program),
    )
    return Probe(frame, blocks)


def _nodes_by_part(program: Program, parts: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {part: [] for part in parts}
    for index, node in enumerate(program.nodes):
        found.get(node.part, []).append(index)
    return found


def _restored(program: Program, nodes: Sequence[int]) -> tuple[int, ...]:
    restores = (program.nodes[index] for index in nodes if Effect.RESTORES in effect_of(program.nodes[index]))
    return tuple(program.values[node.inputs[0]].n_bytes for node in restores)


def _live_bytes(program: Program) -> NDArray[np.int64]:
    steps = np.zeros(len(program.nodes) + 1, np.int64)
    for item in arena_ranges(program):
        steps[item.first] += align(item.n_bytes)
        steps[item.last + 1] -= align(item.n_bytes)
    return np.cumsum(steps)[:-1]


class _EverythingInMemory(PageCache):
    def missing(self, clusters: Iterable[tuple[Key, int]]) -> list[int]:
        return []


def node_seconds(program: Program, numbers: Numbers, rule: Rule, traced: Traced | None = None) -> NDArray[np.float64]:
    """Return the seconds that each node takes in a step, all its micro-batches together, if no weight is read.

    Args:
        program: What is executed.
        numbers: The device's rates.
        rule: What it counts.
        traced: Nodes of programs of the same model, which have many in common; learns those of this one.
    """
    sizes = file_sizes(program)
    known: Traced = {} if traced is None else traced
    scratch, mapped = Space.SCRATCH, Space.MAPPED
    each = []
    for index, node in enumerate(program.nodes):
        values = [program.values[name] for name in (*node.inputs, *node.outputs)]
        key = (
            node.op,
            len(node.inputs),
            *node.attrs.items(),
            *[(v.type.shape, v.type.dtype, v.space is scratch, v.space is mapped) for v in values],
        )
        if key not in known:
            known[key] = trace_node(program, index, 0, sizes)
        each.append(known[key])
    order = list(program.order())
    trace = StepTrace(tuple(each[index] for index in order), 0)
    seconds = np.zeros(len(program.nodes))
    for index, item in zip(
        order, walk(trace, numbers, rule, _EverythingInMemory(0), first=False).timeline, strict=True
    ):
        seconds[index] += item.split.total_s
    return seconds


def _pinned(program: Program) -> dict[str, int]:
    """Return the pinned bytes of each part."""
    sizes = {v.source: v.n_bytes for v in program.values.values() if v.space is Space.PINNED}
    found: dict[str, int] = {}
    for source, n_bytes in sizes.items():
        part = source.partition("/")[0]
        found[part] = found.get(part, 0) + n_bytes
    return found
