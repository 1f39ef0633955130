"""The memory plan of a step program: where everything goes, the exact peak, and whether it fits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.errors import LimitError
from memsim.ir.op import Effect
from memsim.ir.ops import effect_of
from memsim.ir.program import Program, Space
from memsim.planner.arena import align, assign_offsets
from memsim.planner.liveness import LiveRange, arena_ranges
from memsim.planner.staging import read_ahead_bytes, staging
from memsim.units import MIB, format_bytes

LIBRARY_FLOOR_BYTES = 32 * MIB
"""File pages of the interpreter and its libraries that the worker keeps touching."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one program, node by node.

    Attributes:
        offsets: Arena offset of each storage.
        arena_bytes: Size of the arena.
        live_bytes: int64 [nodes]: arena bytes live at each node (aligned), plus pinned, plus staging.
        peak_node: The node with the most live bytes.
        pinned_bytes: Adapters and constants.
        staging_bytes: Through which scratch values pass; held all step.
        mapped_bytes: The most weight bytes read between a page-in and its eviction.
        together_bytes: The most weight bytes of one page-in that are wanted at the same time.
        read_ahead_bytes: The most scratch bytes that are in the page cache at once: clean, on their way to the step.
        held: Storage live at the peak node with its bytes, largest first; all pinned storage is one entry, ``pinned``,
            and so is ``staging``.
    """

    offsets: Mapping[str, int]
    arena_bytes: int
    live_bytes: NDArray[np.int64]
    peak_node: int
    pinned_bytes: int
    staging_bytes: int
    mapped_bytes: int
    together_bytes: int
    read_ahead_bytes: int
    held: tuple[tuple[str, int], ...]

    @property
    def peak_bytes(self) -> int:
        """What the process will hold beyond its baseline: the arena stays resident once touched."""
        return self.pinned_bytes + self.arena_bytes + self.staging_bytes

    @property
    def file_floor_bytes(self) -> int:
        """Clean file pages that a capped group needs beside its footprint, lest it thrash.

        Twice the pages that are wanted together (one block in use, one being read), what is read from the scratch
        file, and the library text.
        """
        return LIBRARY_FLOOR_BYTES + 2 * self.together_bytes + self.read_ahead_bytes


def plan_memory(program: Program) -> MemoryPlan:
    """Place every arena value of a verified ``program`` and account for the rest."""
    ranges = arena_ranges(program)
    offsets, arena_bytes = assign_offsets(ranges)
    n_nodes = len(program.nodes)
    steps = np.zeros(n_nodes + 1, np.int64)
    for item in ranges:
        steps[item.first] += align(item.n_bytes)
        steps[item.last + 1] -= align(item.n_bytes)
    always = _always(program)
    live = np.cumsum(steps)[:n_nodes] + sum(always.values())
    peak = int(live.argmax()) if n_nodes else 0
    return MemoryPlan(
        offsets=offsets,
        arena_bytes=arena_bytes,
        live_bytes=live,
        peak_node=peak,
        pinned_bytes=always["pinned"],
        staging_bytes=always["staging"],
        mapped_bytes=_mapped_peak(program),
        together_bytes=most_together(program),
        read_ahead_bytes=read_ahead_bytes(program),
        held=_held(program, ranges, always, peak),
    )


def most_together(program: Program) -> int:
    """Return the most packed bytes that a page-in wants resident: its own part's and the next one's."""
    page_ins = (node for node in program.nodes if Effect.PAGES_IN in effect_of(node))
    return max((int(node.attrs["together_bytes"]) for node in page_ins), default=0)


def _pinned(program: Program) -> dict[str, int]:
    """Return pinned storage by source: values that share a source share bytes."""
    values = program.values.values()
    return {value.source: value.n_bytes for value in values if value.space is Space.PINNED}


def _mapped_peak(program: Program) -> int:
    """Return the most bytes that page-ins hold at once; an eviction releases its page-in by any of its values."""
    owner: dict[str, int] = {}
    live: dict[int, int] = {}
    peak = 0
    for index, node in enumerate(program.nodes):
        if Effect.PAGES_IN in effect_of(node):
            owner |= dict.fromkeys(node.outputs, index)
            live[index] = int(node.attrs["reads_bytes"])
            peak = max(peak, sum(live.values()))
        elif Effect.EVICTS in effect_of(node):
            for name in node.inputs:
                live.pop(owner.get(name, -1), None)
    return peak


def held_at(program: Program, index: int) -> tuple[tuple[str, int], ...]:
    """Return the storage that is live at node ``index``, as ``MemoryPlan.held`` has it for the peak."""
    return _held(program, arena_ranges(program), _always(program), index)


def _always(program: Program) -> dict[str, int]:
    """Return what is held all step."""
    return {"pinned": sum(_pinned(program).values()), "staging": staging([program]).n_bytes}


def _held(
    program: Program, ranges: list[LiveRange], always: Mapping[str, int], peak: int
) -> tuple[tuple[str, int], ...]:
    if not program.nodes:
        return ()
    held = [(item.name, item.n_bytes) for item in ranges if item.first <= peak <= item.last]
    held += [item for item in always.items() if item[1]]
    return tuple(sorted(held, key=lambda pair: (-pair[1], pair[0])))


def what_takes_less(program: Program) -> str:
    """Say what to change of a run that takes too much memory; a rank only where there are adapters."""
    adapters = any("lora_scale" in node.attrs for node in program.nodes)
    shorten = "shorten --seq-len, or lower --lora-rank" if adapters else "or shorten --seq-len"
    return f"Raise --budget, {shorten}"


def check_budget(
    program: Program,
    plan: MemoryPlan,
    schedule: str,
    baseline_bytes: int,
    budget_bytes: int,
    decimal: bool = False,
    tolerance_bytes: int = 0,
) -> None:
    """Refuse a plan that does not fit: baseline + planned peak + file floor must be within budget and tolerance.

    Args:
        program: The step program.
        plan: Its memory.
        schedule: What to call it.
        baseline_bytes: What the process holds beside.
        budget_bytes: The budget.
        decimal: Sizes in MB instead of MiB.
        tolerance_bytes: By what a reading may differ from the next: a budget that is less than this below is taken.

    Raises:
        LimitError: It does not; the message names the node at the peak, the excess and what to change.
    """
    needed = baseline_bytes + plan.peak_bytes + plan.file_floor_bytes
    if needed - tolerance_bytes <= budget_bytes:
        return

    def show(n_bytes: int) -> str:
        return format_bytes(n_bytes, decimal)

    least = f" ({show(needed - tolerance_bytes)} is the least that is taken)" if tolerance_bytes else ""
    largest = ", ".join(f"{name} {show(size)}" for name, size in plan.held[:3])
    raise LimitError(
        f"{schedule} needs {show(needed)} ({show(baseline_bytes)} interpreter and libraries, {show(plan.peak_bytes)} "
        f"working set, {show(plan.file_floor_bytes)} for mapped files), {show(needed - budget_bytes)} over the budget "
        f"of {show(budget_bytes)}{least}; the peak is at node {plan.peak_node} ({program.nodes[plan.peak_node]}) "
        f"with {largest}. {what_takes_less(program)}"
    )
