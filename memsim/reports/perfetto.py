"""A run as a trace that ui.perfetto.dev opens: Chrome's trace event format, JSON, times in microseconds.

The format: "Trace Event Format", docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. A process a
run, or a run on a device; in it a track each of steps, of parts and of ops, and counters in bytes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memsim.files import atomic_write
from memsim.ir.op import Effect
from memsim.ir.ops import effect_of
from memsim.ir.program import Node
from memsim.planner.traffic import node_traffic
from memsim.reports.run_files import RunFiles
from memsim.reports.verdicts import Verdict

TraceEvent = dict[str, Any]

_TRACKS = {1: "steps", 2: "parts of the model", 3: "ops"}
_STEPS, _PARTS, _OPS = _TRACKS


@dataclass(frozen=True, slots=True)
class Slice:
    """One node on the time line of a trace.

    Attributes:
        start_us: Since the trace's first node, in microseconds.
        counters: Bytes by name, at the end of the node; a name that is absent has not changed.
    """

    step: int
    index: int
    node: Node
    start_us: float
    duration_us: float
    counters: dict[str, int]


def write_trace(path: Path, runs: Sequence[RunFiles], found: Sequence[Verdict] = ()) -> None:
    """Write runs, and what devices would make of them, to ``path``, one event in memory at a time.

    Raises:
        InputError: The file cannot be written, or a run's files are damaged.
    """
    with atomic_write(path) as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[')
        separator = b"\n"
        for event in trace_events(runs, found):
            file.write(separator + json.dumps(event, separators=(",", ":"), allow_nan=False).encode())
            separator = b",\n"
        file.write(b"\n]}\n")


def trace_events(runs: Sequence[RunFiles], found: Sequence[Verdict]) -> Iterator[TraceEvent]:
    """Yield every event of the trace."""
    processes = [(f"{run.name} (measured)", measured_slices(run)) for run in runs]
    processes += [(f"{v.run.name} on {v.simulation.device.name} (simulated)", simulated_slices(v)) for v in found]
    for pid, (name, slices) in enumerate(processes, start=1):
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
        for tid, track in _TRACKS.items():
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": track}}
        yield from _process(pid, slices)


def measured_slices(run: RunFiles) -> Iterator[Slice]:
    """Yield what was executed; the mapped weights are those that the program has paged in and not evicted."""
    program = run.program
    page_ins = [node for node in program.nodes if Effect.PAGES_IN in effect_of(node)]
    owner = {name: node.outputs[0] for node in page_ins for name in node.outputs}
    mapped: dict[str, int] = {}
    paged_in = 0
    for event in run.events():
        node = program.nodes[event.node]
        counters = {} if event.footprint_bytes is None else {"footprint": event.footprint_bytes}
        effect = effect_of(node)
        if Effect.PAGES_IN in effect:
            paged_in += node_traffic(program, node).paged_in_bytes
            mapped[node.outputs[0]] = int(node.attrs["reads_bytes"])
        elif Effect.EVICTS in effect:
            for name in node.inputs:
                mapped.pop(owner.get(name, ""), None)
        if effect & (Effect.PAGES_IN | Effect.EVICTS):
            counters |= {"page cache: weights in use": sum(mapped.values()), "page-ins": paged_in}
        yield Slice(event.step, event.node, node, 1e6 * event.start_s, 1e6 * event.seconds, counters)


def simulated_slices(verdict: Verdict) -> Iterator[Slice]:
    """Yield the first step on the device, nothing in its page cache, and the second; by its nominal numbers."""
    nodes, start_us, read_bytes = verdict.run.program.nodes, 0.0, 0
    for step, walked in enumerate((verdict.simulation.nominal.cold, verdict.simulation.nominal.warm)):
        for at in walked.timeline:
            counters = {"footprint": at.footprint_bytes, "page cache": at.cached_bytes}
            counters["page-ins"] = read_bytes + at.read_bytes
            index = at.node.index
            begin_us = start_us + 1e6 * at.start_s
            yield Slice(step, index, nodes[index], begin_us, 1e6 * at.split.total_s, counters)
        start_us += 1e6 * walked.split.total_s
        read_bytes += walked.read_bytes


def _process(pid: int, slices: Iterable[Slice]) -> Iterator[TraceEvent]:
    """Yield the events of one process; the slices of a track never overlap, whatever the clock's rounding."""
    before: Slice | None = None
    open_groups: dict[int, tuple[str, float]] = {}
    for item in slices:
        if before is not None:
            end_us = min(before.start_us + before.duration_us, item.start_us)
            yield from _node_events(pid, before, max(end_us, before.start_us))
            yield from _close_groups(pid, open_groups, _groups(item), item.start_us)
        for tid, name in _groups(item).items():
            open_groups.setdefault(tid, (name, item.start_us))
        before = item
    if before is not None:
        end_us = before.start_us + before.duration_us
        yield from _node_events(pid, before, end_us)
        yield from _close_groups(pid, open_groups, {}, end_us)


def _groups(item: Slice) -> dict[int, str]:
    """Return what the node belongs to on the tracks of steps and of parts."""
    return {_STEPS: f"step {item.step + 1}", _PARTS: f"{item.node.part or 'step'} {item.node.phase}"}


def _close_groups(
    pid: int, open_groups: dict[int, tuple[str, float]], now: dict[int, str], end_us: float
) -> Iterator[TraceEvent]:
    """Yield the groups that the next node does not belong to, and forget them."""
    for tid, (name, start_us) in list(open_groups.items()):
        if now.get(tid) != name:
            yield _complete(pid, tid, name, "step" if tid == _STEPS else "part", start_us, end_us, {})
            del open_groups[tid]


def _node_events(pid: int, item: Slice, end_us: float) -> Iterator[TraceEvent]:
    node = item.node
    about = {"block": node.part or "none", "phase": node.phase, "node": item.index, "step": item.step + 1}
    yield _complete(pid, _OPS, node.op, node.phase, item.start_us, end_us, about)
    for name, n_bytes in item.counters.items():
        yield {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": _rounded(end_us), "args": {"bytes": n_bytes}}


def _complete(
    pid: int, tid: int, name: str, category: str, start_us: float, end_us: float, about: dict[str, Any]
) -> TraceEvent:
    start, end = _rounded(start_us), _rounded(end_us)
    found: TraceEvent = {"ph": "X", "name": name, "cat": category, "pid": pid, "tid": tid, "ts": start}
    # Of rounded times, so that a slice ends where the next one begins, not a nanosecond later.
    return found | {"dur": _rounded(end - start), "args": about}


def _rounded(microseconds: float) -> float:
    """Return a time in whole nanoseconds."""
    return round(microseconds, 3)
