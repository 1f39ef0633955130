"""Peak memory is a regression test: real capped runs of a toy against the records in ``traces/baselines``."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import memsim.runtime.preflight
from capped_runs import cache
from memsim.ir.program import Node, Program
from memsim.ir.serialize import PlacedProgram
from memsim.ir.verify import verify
from memsim.planner.liveness import arena_ranges
from memsim.planner.plan import plan_memory
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.regression.baseline import from_run, read_baseline
from memsim.regression.check import Check, compare
from memsim.regression.differences import MOVED, PLANNED, reading_error_bytes
from memsim.results import Result
from memsim.runtime.outcome import RunOutcome
from memsim.units import MIB

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "tools"))

from update_baselines import SCHEDULES, baseline_path, measure, toy_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

KNOWN = {schedule: read_baseline(baseline_path(schedule)).result for schedule in SCHEDULES}


@pytest.fixture(scope="module")
def directory(disk: Path) -> Path:
    (disk / "baselines").mkdir()
    return disk / "baselines"


def compared(schedule: str, outcome: RunOutcome) -> Check:
    """Compare with the schedule's baseline, as ``memsim check`` does, but for time."""
    measured = from_run(outcome.directory, toy_config(schedule), outcome.result)
    return compare(measured, read_baseline(baseline_path(schedule)), 0.02, None)


@pytest.mark.parametrize(
    "schedule", [pytest.param(name, marks=pytest.mark.fail_on_growth(f"toy-{name}")) for name in SCHEDULES]
)
def test_memory_is_that_of_the_baseline(directory: Path, schedule: str) -> None:
    result = measure(schedule, directory / schedule).result
    assert result.exit_reason == "done"
    # The marker bounds growth; nothing may shrink without notice either. If it is meant to, run
    # tools/update_baselines.py. What follows from the program is the same on every machine.
    known = KNOWN[schedule]
    working_set, before = result.peak_working_set_bytes, known.peak_working_set_bytes
    assert working_set is not None and before is not None
    assert abs(working_set - before) <= reading_error_bytes()
    assert {name: getattr(result, name) for name in PLANNED} == {name: getattr(known, name) for name in PLANNED}
    moved = [[getattr(step, name) for name in MOVED] for step in result.steps]
    assert moved == [[getattr(step, name) for name in MOVED] for step in known.steps]


def test_mebp_takes_a_third_of_what_backprop_takes() -> None:
    # As planned, to the byte: what is measured is within a megabyte of it, which the figures above are held to.
    mebp, backprop = (KNOWN[name].planned_peak_bytes or 0 for name in ("mebp", "backprop"))
    assert mebp < backprop / 3
    assert backprop > 70 * MIB


def test_tiled_takes_half_of_what_mebp_takes() -> None:
    tiled, mebp = (KNOWN[name].peak_working_set_bytes or 0 for name in ("tiled", "mebp"))
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


def altered(schedule: str, names: list[str]) -> Callable[[TrainingSetup, str], RunPlan]:
    """Return a ``plan_run`` that keeps a residual too long, and adds its name to ``names``."""

    def plan(setup: TrainingSetup, model_hash: str) -> RunPlan:
        lowered = plan_run(setup, model_hash)
        program, name = longer_lived(schedule, lowered.train.program)
        names.append(name)
        memory = plan_memory(program)
        placed = PlacedProgram(program, model_hash, memory.offsets, memory.arena_bytes)
        return RunPlan(placed, None, memory, program, lowered.choices)

    return plan


@pytest.mark.parametrize("schedule", ["mebp", "backprop"])  # ``tiled`` peaks where no residual dies
def test_a_residual_kept_one_node_longer_is_named(
    monkeypatch: pytest.MonkeyPatch, directory: Path, schedule: str
) -> None:
    names: list[str] = []
    monkeypatch.setattr(memsim.runtime.preflight, "plan_run", altered(schedule, names))
    outcome = measure(schedule, directory / f"longer-{schedule}")
    assert outcome.result.exit_reason == "done"
    found = compared(schedule, outcome)
    assert "planned_peak_bytes" in [figure.name for figure in found.failed]
    assert names[0] in [row.name for row in (*found.values, *found.longer)]
    grown = (outcome.result.planned_peak_bytes or 0) - (KNOWN[schedule].planned_peak_bytes or 0)
    assert grown > 3 * MIB
    working_set = next(figure for figure in found.figures if figure.name == "peak_working_set_bytes")
    assert working_set.limit is not None and working_set.baseline is not None
    if grown > working_set.limit - working_set.baseline + MIB:  # on few processors counters are fine enough to see it
        assert working_set.failed


def test_every_figure_is_compared() -> None:
    outcome = read_baseline(baseline_path("mebp"))

    def failed(result: Result) -> list[str]:
        return [figure.name for figure in compare(replace(outcome, result=result), outcome, 0.02, None).failed]

    result = outcome.result
    assert failed(result) == []
    for name in PLANNED:
        known = getattr(result, name)
        assert failed(replace(result, **{name: int(known * 1.02)})) == []
        assert failed(replace(result, **{name: int(known * 1.02) + 1})) == [name]
    for name in MOVED:
        last = result.steps[-1]
        step = replace(last, **{name: int(getattr(last, name) * 1.02) + 1})
        assert failed(replace(result, steps=(*result.steps[:-1], step))) == [name]
    for name in ("peak_working_set_bytes", "peak_footprint_bytes"):
        assert failed(replace(result, **{name: getattr(result, name) + 8 * MIB})) == [name]
    other = replace(result, versions=result.versions | {"numba": "0"}, peak_footprint_bytes=10**9)
    assert failed(other) == []  # another interpreter


def test_a_kernel_that_copies_is_noticed_by_its_op(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """An unplanned copy in the worker: the plan is as before, and the op after which it is held is named."""
    plug = directory / "plug"
    plug.mkdir()
    # Imported by the worker's interpreter when it starts; it changes the op table once that is loaded.
    (plug / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('memsim.execution.worker' in word for word in sys.orig_argv):\n"
        "    import importlib.util, numpy as np\n"
        "    import memsim.execution.kernels as kernels\n"
        "    kept, plain = [], kernels.KERNELS['rope_backward']\n"
        "    def copying(o, i, a):\n"
        "        kept[:] = [np.ones(6 << 20, np.float32)]\n"
        "        plain(o, i, a)\n"
        "    kernels.KERNELS['rope_backward'] = copying\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(plug), *sys.path]))
    found = compared("mebp", measure("mebp", directory / "copying"))
    failed = [figure.name for figure in found.failed]
    assert "peak_working_set_bytes" in failed
    assert "planned_peak_bytes" not in failed
    assert "rope_backward" in [row.name for row in found.ops]
