"""Peak memory is a regression test: real capped runs of a toy against the records in ``traces/baselines``."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import memsim.runtime.run
from capped_runs import cache, shared_cache
from memsim.ir.program import Node, Program
from memsim.ir.serialize import PlacedProgram
from memsim.ir.verify import verify
from memsim.planner.liveness import arena_ranges
from memsim.planner.plan import plan_memory
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.results import Result, read_result
from memsim.runtime.footprint import group_error_bytes
from memsim.units import MIB, format_bytes

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "tools"))

from update_baselines import SCHEDULES, baseline_path, measure  # noqa: E402

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

# Two runs differ by interpreter objects that come and go and by when the kernel adds its counters up: some 0.5 MiB
# each on two processors.
TOLERANCE_BYTES = MIB + group_error_bytes()
PLANNED = ("planned_peak_bytes", "planned_mapped_bytes", "file_floor_bytes")
MOVED = ("bytes_paged_in", "bytes_unpacked", "bytes_spilled", "bytes_written")


def differences(result: Result, baseline: Result) -> list[str]:
    """Return one line for each figure of ``result`` that is not the baseline's.

    What is planned and what is moved follows from the step program, to the byte; what is measured is compared within
    ``TOLERANCE_BYTES``.
    """
    lines = []
    for name in PLANNED:
        found, expected = getattr(result, name), getattr(baseline, name)
        if found != expected:
            lines.append(f"{name}: {found}, baseline {expected}")
    for number, (step, known) in enumerate(zip(result.steps, baseline.steps, strict=True), 1):
        for name in MOVED:
            found, expected = getattr(step, name), getattr(known, name)
            if found != expected:
                lines.append(f"{name} of step {number}: {found}, baseline {expected}")
    found, expected = result.peak_working_set_bytes or 0, baseline.peak_working_set_bytes or 0
    if abs(found - expected) > TOLERANCE_BYTES:
        lines.append(f"peak_working_set_bytes: {format_bytes(found)}, baseline {format_bytes(expected)}")
    return lines


@pytest.fixture(scope="module")
def directory(disk: Path) -> Path:
    (disk / "baselines").mkdir()
    return disk / "baselines"


@pytest.fixture(scope="module")
def results(directory: Path) -> dict[str, Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(shared_cache()))
        return {schedule: measure(schedule, directory) for schedule in SCHEDULES}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_memory_is_that_of_the_baseline(results: dict[str, Result], schedule: str) -> None:
    result = results[schedule]
    assert result.exit_reason == "done"
    changes = differences(result, read_result(baseline_path(schedule)))
    assert changes == [], f"if this is meant, run tools/update_baselines.py: {changes}"


def test_mebp_takes_a_third_of_what_backprop_takes(results: dict[str, Result]) -> None:
    # As planned, to the byte: what is measured is within a megabyte of it, which the figures above are held to.
    mebp, backprop = (results[name].planned_peak_bytes or 0 for name in ("mebp", "backprop"))
    assert mebp < backprop / 3
    assert backprop > 70 * MIB


def test_tiled_takes_half_of_what_mebp_takes(results: dict[str, Result]) -> None:
    tiled, mebp = (results[name].peak_working_set_bytes or 0 for name in ("tiled", "mebp"))
    assert tiled < mebp / 2


def longer_lived(schedule: str, program: Program) -> tuple[Program, str]:
    """Keep one residual one node longer than needed, where that raises the peak; return the program and its name."""
    peak = plan_memory(program).peak_bytes
    for item in sorted(arena_ranges(program), key=lambda item: -item.n_bytes):
        after = item.last + 1
        if item.name.endswith("swiglu") and after < len(program.nodes):
            holder = Node("evict", (item.name,), (), {}, program.nodes[after].part, program.nodes[after].phase)
            nodes = (*program.nodes[: after + 1], holder, *program.nodes[after + 1 :])
            changed = replace(program, nodes=nodes, repeat=None)
            if plan_memory(changed).peak_bytes > peak:
                verify(changed)
                return changed, item.name
    raise AssertionError(f"no residual of {schedule} lives up to the peak")


def altered(schedule: str) -> Callable[[TrainingSetup, str], RunPlan]:
    """Return a ``plan_run`` that keeps a residual too long."""

    def plan(setup: TrainingSetup, model_hash: str) -> RunPlan:
        program, _ = longer_lived(schedule, plan_run(setup, model_hash).train.program)
        memory = plan_memory(program)
        placed = PlacedProgram(program, model_hash, memory.offsets, memory.arena_bytes)
        return RunPlan(placed, None, memory, program)

    return plan


@pytest.mark.parametrize("schedule", ["mebp", "backprop"])  # ``tiled`` peaks where no residual dies
def test_a_residual_kept_one_node_longer_is_noticed(
    monkeypatch: pytest.MonkeyPatch, directory: Path, schedule: str
) -> None:
    monkeypatch.setattr(memsim.runtime.run, "plan_run", altered(schedule))
    baseline = read_result(baseline_path(schedule))
    result = measure(schedule, directory, "longer")
    assert result.exit_reason == "done"
    changes = differences(result, baseline)
    assert changes[0].startswith("planned_peak_bytes: ")
    grown = (result.planned_peak_bytes or 0) - (baseline.planned_peak_bytes or 0)
    assert grown > 3 * MIB
    if grown > TOLERANCE_BYTES + MIB:  # on few processors the kernel's counters are fine enough to see it too
        assert changes[-1].startswith("peak_working_set_bytes: ")


def test_every_figure_is_compared() -> None:
    baseline = read_result(baseline_path("mebp"))
    assert differences(baseline, baseline) == []
    for name in PLANNED:
        assert len(differences(replace(baseline, **{name: getattr(baseline, name) + 64}), baseline)) == 1
    for name in MOVED:
        step = replace(baseline.steps[1], **{name: getattr(baseline.steps[1], name) + 64})
        changes = differences(replace(baseline, steps=(baseline.steps[0], step)), baseline)
        assert [line.partition(":")[0] for line in changes] == [f"{name} of step 2"]
    for sign in (1, -1):
        peak = (baseline.peak_working_set_bytes or 0) + sign * (TOLERANCE_BYTES + 1)
        (change,) = differences(replace(baseline, peak_working_set_bytes=peak), baseline)
        assert change.startswith("peak_working_set_bytes: ")
