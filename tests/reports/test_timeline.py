from dataclasses import replace
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.reports.layers import PHASES, layer_rows
from memsim.reports.run_files import open_run
from memsim.reports.timeline import READINGS_DIFFER_BYTES, planned_timeline, spans, timeline
from recorded import BASELINE, MB, events, toy_run_plan, write_run


def test_the_timeline_has_every_node_of_the_step_with_plan_and_reading(tmp_path: Path) -> None:
    plan = toy_run_plan()
    line = timeline(open_run(write_run(tmp_path / "run", plan)))
    live = plan.memory.live_bytes.tolist()
    assert line.step == 0  # nothing in later steps is higher
    assert [sample.planned_bytes - BASELINE for sample in line.samples] == live
    assert line.planned_peak.index == plan.memory.peak_node
    readings = [event.footprint_bytes for event in events(plan, 1)]
    # A reading holds until the next one.
    assert [s.footprint_bytes for s in line.samples] == [readings[index - index % 3] for index in range(len(readings))]
    assert line.seconds == pytest.approx(sum(event.seconds for event in events(plan, 1)))
    assert line.samples[0].start_s == 0.0


def test_the_peak_is_where_it_is_first_reached(tmp_path: Path) -> None:
    plan = toy_run_plan()
    made = events(plan, 2)
    half = len(made) // 2
    # Step 2 is higher by less than two readings differ: step 1 touched the memory. Then by more.
    for extra, step in ((READINGS_DIFFER_BYTES, 0), (READINGS_DIFFER_BYTES + 1, 1)):
        readings = [90 * MB if index == 40 else 60 * MB for index in range(half)]
        readings += [90 * MB + extra if index == 50 else 60 * MB for index in range(half)]
        changed = [replace(event, footprint_bytes=n) for event, n in zip(made, readings, strict=True)]
        line = timeline(open_run(write_run(tmp_path / str(step), plan, changed)))
        assert line.step == step
        assert line.peak.index == (40, 50)[step]
        assert line.peak.footprint_bytes == max(sample.footprint_bytes or 0 for sample in line.samples)


def test_without_readings_the_plan_says_where_the_peak_is(tmp_path: Path) -> None:
    plan = toy_run_plan()
    changed = [replace(event, footprint_bytes=None) for event in events(plan, 1)]
    line = timeline(open_run(write_run(tmp_path / "run", plan, changed)))
    assert line.peak == line.planned_peak
    assert line.peak.footprint_bytes is None


def test_a_run_without_events_is_one_line(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run", changed=[], exit_reason="killed_at_cap", fits=False))
    with pytest.raises(InputError, match=r"has no events: the run ended \(killed_at_cap\) before its first node"):
        timeline(run)
    assert layer_rows(run) == []


def test_spans_cover_the_step_and_keep_its_peaks(tmp_path: Path) -> None:
    plan = toy_run_plan()
    line = planned_timeline(plan.train.program, plan.memory, BASELINE)
    cut = spans(line, 7)
    assert len(cut) == 7
    assert [span.first for span in cut[1:]] == [span.last + 1 for span in cut[:-1]]
    assert (cut[0].first, cut[-1].last) == (0, len(plan.train.program.nodes) - 1)
    assert max(span.planned_bytes for span in cut) == BASELINE + int(plan.memory.live_bytes.max())
    assert all(span.footprint_bytes is None for span in cut)
    assert len(spans(line, 10**6)) == len(line.samples)


def test_layers_add_up_to_the_median_step(tmp_path: Path) -> None:
    plan = toy_run_plan()
    run = open_run(write_run(tmp_path / "run", plan))
    rows = layer_rows(run)
    assert [row.part for row in rows] == ["embed", "block_000", "block_001", "head", "step"]
    median = [event for event in events(plan) if event.step == run.timed_step]
    assert sum(row.total_s for row in rows) == pytest.approx(sum(event.seconds for event in median))
    nodes = plan.train.program.nodes
    for row in rows[:4]:
        own = [event for event in median if nodes[event.node].part == row.part]
        for phase in PHASES:
            assert row.seconds[phase] == pytest.approx(sum(event.seconds for event in own if event.phase == phase))
        assert row.planned_bytes == max(int(plan.memory.live_bytes[event.node]) for event in own)
        assert row.peak_footprint_bytes == max(
            e.footprint_bytes or 0 for e in events(plan) if nodes[e.node].part == row.part
        )
