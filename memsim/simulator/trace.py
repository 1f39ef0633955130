"""What the simulator walks: the nodes of one step with their work, their files and the memory that is held at each.

A planned step program becomes a trace here; ``recording`` makes one of a recorded run.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from memsim.ir.op import Effect
from memsim.ir.ops import effect_of
from memsim.ir.program import Node, Program, Space
from memsim.ir.work import Kind
from memsim.planner.plan import MemoryPlan
from memsim.planner.traffic import node_traffic
from memsim.planner.work import Work, node_kind, node_work

_TOUCH_BYTES = 4096
"""Arena pages are resident from the first touch; the smallest page of any device."""


@dataclass(frozen=True, slots=True)
class FileRead:
    """Bytes of one weight file that a node asks for.

    Attributes:
        file: The part of the model.
        n_bytes: Read by this node.
        file_bytes: Size of the file; if it is larger, ``pieces`` scattered reads are made.
        pieces: Rows that are gathered one by one; 0 when the whole file is read in order.
    """

    file: str
    n_bytes: int
    file_bytes: int
    pieces: int = 0


@dataclass(frozen=True, slots=True)
class TraceNode:
    """One executed node.

    Attributes:
        index: Its position in the program.
        anonymous_bytes: Anonymous memory held during the node, the process's own baseline left out.
        page_in: What must be in memory when it ends.
        prefetch: What is read while later nodes compute.
        written_bytes: Written to the scratch file, and waited for.
        restored_bytes: Read back from it.
        evicted_bytes: Of weight files, given back.
        evicted_files: Those files.
    """

    index: int
    op: str
    part: str
    phase: str
    kind: Kind
    work: Work
    anonymous_bytes: int
    page_in: FileRead | None = None
    prefetch: FileRead | None = None
    written_bytes: int = 0
    restored_bytes: int = 0
    evicted_bytes: int = 0
    evicted_files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}, {self.part or 'step'} {self.phase}"


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One step: its nodes in the order of execution, micro-batches repeated.

    Attributes:
        resident_bytes: Anonymous memory held in every later step: what was touched stays.
    """

    nodes: tuple[TraceNode, ...]
    resident_bytes: int


def trace_program(program: Program, plan: MemoryPlan, passes: Mapping[str, int] | None = None) -> StepTrace:
    """Return the trace of a planned step program, run for the first time.

    Args:
        program: What is executed.
        plan: Its memory.
        passes: How often an op passes over its operands, where that is more than once.
    """
    resident = list(_resident(program, plan))
    # The second micro-batch finds everything touched that the first one touched.
    held = accumulate((resident[index] for index in program.order()), max)
    return trace_step(program, held, max(resident, default=0), passes)


def trace_step(
    program: Program, held: Iterable[int], resident_bytes: int, passes: Mapping[str, int] | None = None
) -> StepTrace:
    """Return the trace of a step of which it is known what it holds.

    Args:
        program: What is executed.
        held: Anonymous bytes at each executed node.
        resident_bytes: Those that every later step holds from its start.
        passes: How often an op passes over its operands, where that is more than once.
    """
    sizes = file_sizes(program)
    nodes = []
    for index, held_bytes in zip(program.order(), held, strict=True):
        node = trace_node(program, index, held_bytes, sizes)
        times = (passes or {}).get(node.op, 1)
        nodes.append(replace(node, work=replace(node.work, moved_bytes=times * node.work.moved_bytes)))
    return StepTrace(tuple(nodes), resident_bytes)


def trace_node(program: Program, index: int, held: int, sizes: Mapping[str, int]) -> TraceNode:
    """Return what node ``index`` does while ``held`` bytes are; ``sizes`` are ``file_sizes(program)``."""
    node = program.nodes[index]
    effect = effect_of(node)
    traffic = node_traffic(program, node)
    inputs = [program.values[name] for name in node.inputs]
    scratch_in = sum(value.n_bytes for value in inputs if value.space is Space.SCRATCH)
    mapped = [value for value in inputs if value.space is Space.MAPPED] if Effect.EVICTS in effect else []
    file = str(node.attrs.get("part", ""))
    return TraceNode(
        index=index,
        op=node.op,
        part=node.part,
        phase=node.phase,
        kind=node_kind(node),
        work=node_work(program, node),
        anonymous_bytes=held,
        page_in=_page_in(program, node, sizes[file]) if Effect.PAGES_IN in effect else None,
        prefetch=FileRead(file, sizes[file], sizes[file]) if Effect.ASKS_AHEAD in effect else None,
        written_bytes=traffic.written_bytes,
        restored_bytes=_restored_bytes(effect, scratch_in, traffic.paged_in_bytes),
        evicted_bytes=sum(value.n_bytes for value in mapped),
        evicted_files=tuple(dict.fromkeys(value.source.partition("/")[0] for value in mapped)),
    )


def _restored_bytes(effect: Effect, scratch_in_bytes: int, gathered_bytes: int) -> int:
    """Return what a node reads of the scratch values among its inputs: all, nothing, or the rows that it defines."""
    if Effect.REPLACES in effect:
        return 0
    return gathered_bytes if Effect.GATHERS in effect else scratch_in_bytes


def _page_in(program: Program, node: Node, file_bytes: int) -> FileRead:
    reads = int(node.attrs["reads_bytes"])
    pieces = 0
    if reads < file_bytes:
        pieces = next(value.type.shape[0] for value in program.values.values() if value.name == "ids")
    return FileRead(str(node.attrs["part"]), reads, file_bytes, pieces)


def file_sizes(program: Program) -> dict[str, int]:
    """Return the bytes of every part that is paged in."""
    return {
        str(node.attrs["part"]): sum(program.values[name].n_bytes for name in node.outputs)
        for node in program.nodes
        if Effect.PAGES_IN in effect_of(node)
    }


def _resident(program: Program, plan: MemoryPlan) -> Iterator[int]:
    """Yield pinned bytes plus the arena bytes touched so far, at each node of the program's first run."""
    touched = np.zeros(-(-plan.arena_bytes // _TOUCH_BYTES), np.bool_)
    count = 0
    for node in program.nodes:
        for name in node.outputs:
            value = program.values[name]
            if value.space is not Space.ARENA or value.alias_of:
                continue
            start = plan.offsets[name]
            pages = touched[start // _TOUCH_BYTES : -(-(start + value.n_bytes) // _TOUCH_BYTES)]
            count += int(pages.size - np.count_nonzero(pages))
            pages[:] = True
        yield plan.pinned_bytes + plan.staging_bytes + min(count * _TOUCH_BYTES, plan.arena_bytes)
