"""Memory over one step of a run: what was measured after each node, and what the plan says is alive there."""

from dataclasses import dataclass
from itertools import pairwise

from memsim.errors import InputError
from memsim.ir.program import Node, Program
from memsim.planner.plan import MemoryPlan
from memsim.reports.run_files import RunFiles
from memsim.units import MIB

READINGS_DIFFER_BYTES = MIB
"""Of one run's peak: what is touched stays, so the step in which it is touched first says more than later ones."""


@dataclass(frozen=True, slots=True)
class NodeSample:
    """One executed node of the step.

    Attributes:
        index: Its position in the program.
        start_s: Since the step began; 0 if nothing was executed.
        footprint_bytes: The last reading at its end; None before the first.
        planned_bytes: Baseline plus what is live at it: arena, pinned, staging.
    """

    index: int
    node: Node
    start_s: float
    seconds: float
    footprint_bytes: int | None
    planned_bytes: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """The first step of a run in which its nodes' footprint was highest.

    Attributes:
        step: From 0.
        peak: The first sample within ``READINGS_DIFFER_BYTES`` of the step's highest reading; without any reading, the
            one with the highest plan.
        planned_peak: The first sample with the highest plan.
    """

    step: int
    samples: tuple[NodeSample, ...]
    peak: NodeSample
    planned_peak: NodeSample

    @property
    def seconds(self) -> float:
        """From the first node's start to the last one's end."""
        last = self.samples[-1]
        return last.start_s + last.seconds


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive nodes of a step, ``first`` to ``last`` in the order of execution, and the most they held.

    Attributes:
        begins: The first of them.
    """

    first: int
    last: int
    begins: Node
    planned_bytes: int
    footprint_bytes: int | None


def spans(line: Timeline, count: int = 24) -> list[Span]:
    """Return the step cut into ``count`` stretches of as many nodes each, give or take one."""
    total = len(line.samples)
    edges = sorted({index * total // count for index in range(count)} | {total})
    found = []
    for first, stop in pairwise(edges):
        part = line.samples[first:stop]
        readings = [sample.footprint_bytes for sample in part if sample.footprint_bytes is not None]
        planned = max(sample.planned_bytes for sample in part)
        found.append(Span(first, stop - 1, part[0].node, planned, max(readings, default=None)))
    return found


def planned_timeline(program: Program, plan: MemoryPlan, baseline_bytes: int) -> Timeline:
    """Return the step of a program that nobody ran."""
    live = plan.live_bytes
    samples = tuple(
        NodeSample(index, program.nodes[index], 0.0, 0.0, None, baseline_bytes + int(live[index]))
        for index in program.order()
    )
    peak = max(samples, key=lambda sample: sample.planned_bytes)
    return Timeline(0, samples, peak, peak)


def peak_step(run: RunFiles) -> int:
    """Return the first step with the highest footprint after a node, give or take what two readings differ by."""
    peaks: dict[int, int] = {}
    for event in run.events():
        peaks[event.step] = max(peaks.get(event.step, 0), event.footprint_bytes or 0)
    highest = max(peaks.values(), default=0)
    return next((step for step, peak in peaks.items() if peak >= highest - READINGS_DIFFER_BYTES), 0)


def timeline(run: RunFiles) -> Timeline:
    """Return the step with the peak.

    Raises:
        InputError: No node was executed, or the events are damaged.
    """
    step = peak_step(run)
    baseline, live = run.result.baseline_footprint_bytes or 0, run.plan.live_bytes
    samples: list[NodeSample] = []
    first_s, reading = 0.0, None
    for event in run.events(step):
        first_s = first_s if samples else event.start_s
        reading = event.footprint_bytes or reading
        node, planned = run.program.nodes[event.node], baseline + int(live[event.node])
        samples.append(NodeSample(event.node, node, event.start_s - first_s, event.seconds, reading, planned))
    if not samples:
        raise InputError(
            f"{run.directory} has no events: the run ended ({run.result.exit_reason}) before its first node"
        )
    planned_peak = max(samples, key=lambda sample: sample.planned_bytes)
    highest = max(sample.footprint_bytes or 0 for sample in samples)
    near = (sample for sample in samples if (sample.footprint_bytes or 0) >= highest - READINGS_DIFFER_BYTES)
    return Timeline(step, tuple(samples), next(near) if highest else planned_peak, planned_peak)
