"""Traces against the rules of Chrome's trace event format."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from memsim.planner.traffic import node_traffic
from memsim.reports.perfetto import write_trace
from memsim.reports.run_files import RunFiles, open_run
from memsim.reports.verdicts import verdicts
from memsim.simulator.device_file import find_device
from recorded import events, toy_run_plan, write_run

NEEDED = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "C": {"name", "ph", "ts", "pid", "tid", "args"},
    "M": {"name", "ph", "pid", "tid", "args"},
}


def problems(trace: dict[str, Any]) -> list[str]:
    """Return how ``trace`` breaks the format, or what Perfetto makes of it when slices of a track overlap."""
    found = []
    if trace.get("displayTimeUnit") not in ("ms", "ns"):
        found.append("displayTimeUnit")
    ends: dict[tuple[int, int], float] = defaultdict(float)
    counted: dict[tuple[int, str], float] = defaultdict(float)
    for event in trace["traceEvents"]:
        if set(event) != NEEDED.get(event.get("ph")):
            found.append(f"keys of {event}")
        elif event["ph"] == "X":
            track = (event["pid"], event["tid"])
            # A nanosecond of rounding: times are decimals in the file and binary here.
            if event["dur"] < 0 or event["ts"] < ends[track] - 1e-3:
                found.append(f"overlap at {event}")
            ends[track] = event["ts"] + event["dur"]
        elif event["ph"] == "C":
            counter = (event["pid"], event["name"])
            if event["ts"] < counted[counter] or not all(isinstance(n, int) for n in event["args"].values()):
                found.append(f"counter {event}")
            counted[counter] = event["ts"]
        elif event["name"] not in ("process_name", "thread_name") or not isinstance(event["args"]["name"], str):
            found.append(f"metadata {event}")
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    return open_run(write_run(tmp_path / "run"))


def traced(path: Path, run: RunFiles, *devices: str) -> dict[str, Any]:
    write_trace(path, [run], verdicts([run], [find_device(name) for name in devices]))
    trace: dict[str, Any] = json.loads(path.read_text())
    return trace


def test_a_trace_keeps_the_format(run: RunFiles, tmp_path: Path) -> None:
    assert problems(traced(tmp_path / "trace.json", run, "iphone-15-pro-max", "raspberry-pi-5")) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda e: e.pop("dur"), "keys of"),
        (lambda e: e.update(dur=1e9), "overlap"),
        (lambda e: e.update(ts=-5.0), "overlap"),
        (lambda e: e.update(ph="Z"), "keys of"),
    ],
)
def test_a_broken_trace_is_seen(run: RunFiles, tmp_path: Path, change: Any, complaint: str) -> None:
    trace = traced(tmp_path / "trace.json", run)
    change(next(event for event in trace["traceEvents"] if event["ph"] == "X" and event["tid"] == 3))
    assert complaint in problems(trace)[0]


def test_every_node_is_a_slice_in_microseconds(run: RunFiles, tmp_path: Path) -> None:
    trace = traced(tmp_path / "trace.json", run)
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["tid"] == 3]
    made = events(toy_run_plan())
    assert len(slices) == len(made)
    for event, slice_ in zip(made, slices, strict=True):
        node = run.program.nodes[event.node]
        assert (slice_["name"], slice_["cat"]) == (event.op, event.phase)
        about = {"block": node.part or "none", "phase": node.phase, "node": event.node, "step": event.step + 1}
        assert slice_["args"] == about
        assert slice_["ts"] == pytest.approx(1e6 * event.start_s, abs=2e-3)  # rounded to nanoseconds
        assert slice_["dur"] == pytest.approx(1e6 * event.seconds, abs=2e-3)


def test_steps_and_parts_span_their_nodes(run: RunFiles, tmp_path: Path) -> None:
    trace = traced(tmp_path / "trace.json", run)
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    ops = [event for event in complete if event["tid"] == 3]
    steps = [event for event in complete if event["tid"] == 1]
    assert [step["name"] for step in steps] == ["step 1", "step 2", "step 3"]
    for outer in (event for event in complete if event["tid"] in (1, 2)):
        inside = [op for op in ops if outer["ts"] <= op["ts"] < outer["ts"] + outer["dur"] - 1e-3]
        assert sum(op["dur"] for op in inside) == pytest.approx(outer["dur"], abs=1.0)
        if outer["tid"] == 2:
            names = {f"{'step' if op['args']['block'] == 'none' else op['args']['block']} {op['cat']}" for op in inside}
            assert names == {outer["name"]}


def counters(trace: dict[str, Any], name: str, pid: int = 1) -> list[int]:
    chosen = [e for e in trace["traceEvents"] if e["ph"] == "C" and e["pid"] == pid and e["name"] == name]
    return [event["args"]["bytes"] for event in chosen]


def test_counters_of_a_run_are_its_readings_and_its_traffic(run: RunFiles, tmp_path: Path) -> None:
    trace = traced(tmp_path / "trace.json", run)
    readings = [event.footprint_bytes for event in events(toy_run_plan()) if event.footprint_bytes is not None]
    assert counters(trace, "footprint") == readings
    paged_in = sum(node_traffic(run.program, node).paged_in_bytes for node in run.program.nodes)
    assert counters(trace, "page-ins")[-1] == 3 * paged_in
    in_use = counters(trace, "page cache: weights in use")
    assert (max(in_use), in_use[-1]) == (run.plan.mapped_bytes, 0)


def test_counters_of_a_device_are_the_simulator_s(run: RunFiles, tmp_path: Path) -> None:
    (verdict,) = verdicts([run], [find_device("iphone-15-pro-max")])
    trace = traced(tmp_path / "trace.json", run, "iphone-15-pro-max")
    walked = [verdict.simulation.nominal.cold, verdict.simulation.nominal.warm]
    assert counters(trace, "footprint", 2) == [at.footprint_bytes for step in walked for at in step.timeline]
    assert counters(trace, "page-ins", 2)[-1] == sum(step.read_bytes for step in walked)
    # Nothing is dropped on a phone with so much memory: what was read is what is in the cache, clusters rounded up.
    assert counters(trace, "page cache", 2)[-1] >= 0.5 * walked[0].read_bytes > 0


def test_clocks_that_overlap_do_not_make_slices_overlap(tmp_path: Path) -> None:
    from dataclasses import replace

    longer = [replace(event, seconds=event.seconds * 1.5) for event in events(toy_run_plan(), 1)]
    assert problems(traced(tmp_path / "trace.json", open_run(write_run(tmp_path / "run", changed=longer)))) == []
