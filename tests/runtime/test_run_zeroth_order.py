"""Capped zeroth-order runs: what they leave and read, and the adapter made again from their seeds."""

import os
import signal
from pathlib import Path

import pytest

from capped_runs import cache, run_in_step, run_toy, workers, write_model
from memsim.errors import InputError, UsageError
from memsim.runtime.replay_seeds import replay_seeds
from memsim.runtime.resume import read_resumption, resume
from memsim.runtime.run_progress import RunProgress, StepDone
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.recordings.recording import read_recording

assert cache  # a fixture, found by name
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def model(disk: Path) -> Path:
    return write_model(disk / "zeroth-order-model").directory


@pytest.mark.usefixtures("cache")
def test_a_run_comes_again_from_its_seeds_to_the_bit(tmp_path: Path, disk: Path, model: Path) -> None:
    out = disk / "zeroth-order-run"
    done = run_toy(model, out, schedule="mezo", steps=3, optimizer=OptimizerConfig(lr=1e-2), seed=5)
    assert done.result.exit_reason == "done"
    assert done.result.optimizer == "sgd"
    assert len((out / "seeds.jsonl").read_text().splitlines()) == 1 + 3
    again = disk / "zeroth-order-again"
    assert replay_seeds(out / "seeds.jsonl", str(model), again, lambda _: None) == 3
    assert (again / ADAPTER).read_bytes() == (out / ADAPTER).read_bytes()
    assert (again / "adapter_config.json").read_bytes() == (out / "adapter_config.json").read_bytes()
    with pytest.raises(InputError, match="exists; choose a directory that does not"):
        replay_seeds(out / "seeds.jsonl", str(model), again, lambda _: None)
    other = write_model(tmp_path / "other")  # the same weights, found under another name
    assert replay_seeds(out / "seeds.jsonl", str(other.directory), disk / "zeroth-order-third", lambda _: None) == 3


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("schedule", ["hybrid", "lcsb", "forward-grad"])
def test_other_schedules_run_under_the_cap_within_their_plan(disk: Path, model: Path, schedule: str) -> None:
    done = run_toy(model, disk / f"run-{schedule}", schedule=schedule, steps=2)
    result = done.result
    assert result.exit_reason == "done"
    assert result.peak_footprint_bytes is not None and result.planned_footprint_bytes is not None
    # What any schedule's plan may miss: pages of the interpreter that only a step touches.
    assert result.peak_footprint_bytes < result.planned_footprint_bytes + 6_000_000
    assert not (disk / f"run-{schedule}" / "seeds.jsonl").exists() or schedule == "forward-grad"


@pytest.mark.usefixtures("cache")
def test_one_stream_pages_in_half_of_two(disk: Path, model: Path) -> None:
    shared, naive = (
        run_toy(model, disk / f"run-{schedule}", schedule=schedule, steps=1, cold=True).result.steps[0]
        for schedule in ("mezo", "mezo-naive")
    )
    assert shared.loss == naive.loss
    assert shared.bytes_paged_in is not None and shared.bytes_unpacked is not None
    assert 2 * shared.bytes_paged_in == naive.bytes_paged_in
    assert 2 * shared.bytes_unpacked == naive.bytes_unpacked


@pytest.mark.usefixtures("cache")
def test_a_killed_run_goes_on_to_the_same_bits_and_seeds(disk: Path, model: Path) -> None:
    def kill(step: StepDone) -> None:
        if step.step == 5:
            os.kill(workers()[0].pid, signal.SIGKILL)

    settings = {"schedule": "zo-adam", "scheme": "norms", "steps": 6, "checkpoint_every": 2}
    whole = run_toy(model, disk / "zeroth-order-whole", **settings)
    out = disk / "zeroth-order-killed"
    killed = run_in_step(model, out, RunProgress(step=kill), **settings)
    assert killed.result.exit_reason == "killed"
    resumed = resume(read_resumption(out, {}), RunProgress())
    assert resumed.result.exit_reason == "done"
    assert [step.loss for step in resumed.result.steps] == [step.loss for step in whole.result.steps]
    for name in ("trained.safetensors", "seeds.jsonl"):
        assert (out / name).read_bytes() == (whole.directory / name).read_bytes()
    again = disk / "zeroth-order-resumed-again"
    assert replay_seeds(out / "seeds.jsonl", str(model), again, lambda _: None) == 6
    assert (again / "trained.safetensors").read_bytes() == (out / "trained.safetensors").read_bytes()


@pytest.mark.usefixtures("cache")
def test_a_recorded_run_holds_what_its_plan_says(disk: Path, model: Path) -> None:
    out = disk / "zeroth-order-recorded"
    assert run_toy(model, out, schedule="mezo", steps=2, record=True).result.exit_reason == "done"
    recording = read_recording(out)
    assert recording.n_steps >= 1
    assert {recording.program.nodes[node.index].op for node in recording.nodes} >= {"perturb", "estimate", "zo_update"}
    with pytest.raises(UsageError, match="--record needs steps that are all alike"):
        run_toy(model, disk / "lcsb-recorded", schedule="lcsb", record=True)
