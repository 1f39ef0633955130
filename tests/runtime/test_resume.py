"""Runs that stop and go on: the same bits as one that never stopped, or a refusal in one line."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from capped_runs import (
    ADAPTER_FILES,
    BUDGET,
    MB,
    RUN_FILES,
    cache,
    files_in,
    left_behind,
    memsim_command,
    run_in_step,
    run_toy,
    shared_cache,
    waiting_after_steps,
    workers,
    write_model,
)
from memsim.errors import InputError, UsageError
from memsim.result_file import read_result
from memsim.results import Result
from memsim.run_directory.events import read_events
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.resume import read_resumption, resume
from memsim.runtime.run_progress import RunProgress, StepDone
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack import Pack

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

STEPS = 6
SETTINGS = {"seq_len": 16, "steps": STEPS, "checkpoint_every": 2}
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "resumed-model")


@pytest.fixture(scope="module")
def whole(pack: Pack, disk: Path) -> RunOutcome:
    """A run that never stops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(shared_cache()))
        return run_toy(pack.directory, disk / "whole", **SETTINGS)


def go_on(directory: Path, progress: RunProgress | None = None, allow: bool = False, **changes: object) -> RunOutcome:
    return resume(read_resumption(directory, changes, allow), progress or RunProgress())


def signalling(number: signal.Signals, at_step: int, to_worker: bool) -> RunProgress:
    def send(step: StepDone) -> None:
        if step.step == at_step:
            os.kill(workers()[0].pid if to_worker else os.getpid(), number)

    return RunProgress(step=send)


def learned(result: Result) -> list[tuple[float | None, float | None]]:
    return [(step.loss, step.accuracy) for step in result.steps]


def assert_same_bits(outcome: RunOutcome, whole: RunOutcome) -> None:
    assert (outcome.result.exit_reason, outcome.message) == ("done", "")
    assert learned(outcome.result) == learned(whole.result)
    assert [(item.step, item.loss) for item in outcome.result.evals] == [(e.step, e.loss) for e in whole.result.evals]
    assert (outcome.directory / ADAPTER).read_bytes() == (whole.directory / ADAPTER).read_bytes()
    assert files_in(outcome.directory) == RUN_FILES | ADAPTER_FILES
    assert left_behind(outcome.directory) == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"schedule": "tiled", "optimizer": OptimizerConfig("momentum", lr=1e-2), "accumulate": 2}, id="tiled"
        ),
        pytest.param(
            {"schedule": "backprop", "optimizer": OptimizerConfig("sgd", lr=1e-1), "enforcement": "watchdog"},
            id="backprop",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(pack: Pack, tmp_path: Path, changes: dict, disk: Path) -> None:
    settings = SETTINGS | changes
    whole = run_toy(pack.directory, tmp_path / "whole", **settings)
    killed = run_in_step(pack.directory, tmp_path / "out", signalling(signal.SIGKILL, 5, to_worker=True), **settings)
    assert killed.result.exit_reason == "killed"
    assert killed.message.endswith(f"; `memsim run --resume {tmp_path / 'out'}` goes on after step 4")
    assert_same_bits(go_on(tmp_path / "out"), whole)


def test_a_run_goes_on_with_the_schedule_that_was_searched_for(pack: Pack, tmp_path: Path, disk: Path) -> None:
    settings = {"schedule": "auto", "seq_len": 256, "steps": 3, "checkpoint_every": 1}
    fastest = run_toy(pack.directory, tmp_path / "fastest", **(settings | {"steps": 1})).result
    assert fastest.planned_footprint_bytes is not None and fastest.file_floor_bytes is not None
    tight = settings | {"budget_bytes": fastest.planned_footprint_bytes + fastest.file_floor_bytes - 3 * MB}
    whole = run_toy(pack.directory, tmp_path / "whole", **tight)
    assert whole.result.choices != fastest.choices
    killed = run_in_step(pack.directory, tmp_path / "out", signalling(signal.SIGKILL, 2, to_worker=True), **tight)
    assert killed.result.exit_reason == "killed"
    # Under a budget for which another schedule would be chosen: the one that it began with stays.
    gone_on = go_on(tmp_path / "out", budget_bytes=BUDGET)
    assert gone_on.result.choices == whole.result.choices
    assert_same_bits(gone_on, whole)


def test_events_and_record_of_a_resumed_run_are_those_of_a_whole_one(
    pack: Pack, whole: RunOutcome, tmp_path: Path
) -> None:
    run_in_step(pack.directory, tmp_path / "out", signalling(signal.SIGKILL, 5, to_worker=True), **SETTINGS)
    notes: list[str] = []
    outcome = go_on(tmp_path / "out", RunProgress(note=notes.append))
    assert notes == ["going on after step 4"]
    assert_same_bits(outcome, whole)
    assert read_result(tmp_path / "out" / "result.json").steps == outcome.result.steps
    ours, theirs = (list(read_events(run.directory / "events.jsonl")) for run in (outcome, whole))
    assert [(event.step, event.node, event.op, event.bytes) for event in ours] == [
        (event.step, event.node, event.op, event.bytes) for event in theirs
    ]
    starts = [event.start_s for event in ours]
    assert starts == sorted(starts)


def test_ctrl_c_saves_the_step_and_the_run_goes_on(pack: Pack, whole: RunOutcome, tmp_path: Path) -> None:
    notes: list[str] = []
    progress = signalling(signal.SIGINT, 3, to_worker=False)
    asked = RunProgress(step=progress.step, note=notes.append)
    stopped = run_in_step(pack.directory, tmp_path / "out", asked, **SETTINGS)
    n_steps = len(stopped.result.steps)
    assert stopped.result.exit_reason == "interrupted"
    assert 3 <= n_steps < STEPS
    assert stopped.message.endswith(f"` goes on after step {n_steps}")
    assert "Ctrl-C again stops at once" in notes[-1]
    assert files_in(tmp_path / "out") == RUN_FILES
    assert left_behind(tmp_path / "out") == []
    assert_same_bits(go_on(tmp_path / "out"), whole)


def test_a_second_ctrl_c_stops_at_once(pack: Pack, whole: RunOutcome, tmp_path: Path) -> None:
    def interrupt(step: StepDone) -> None:
        if step.step == 3:
            (worker,) = workers()
            worker.suspend()  # it will never finish the step
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    stopped = run_in_step(pack.directory, tmp_path / "out", RunProgress(step=interrupt), **SETTINGS)
    assert stopped.result.exit_reason == "interrupted"
    assert stopped.message.startswith("interrupted after 3 steps; ")
    assert stopped.message.endswith("goes on after step 2")
    assert left_behind(tmp_path / "out") == []
    assert_same_bits(go_on(tmp_path / "out"), whole)


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    pack: Pack, whole: RunOutcome, tmp_path: Path
) -> None:
    killed = run_in_step(pack.directory, tmp_path / "out", signalling(signal.SIGKILL, 1, to_worker=True), **SETTINGS)
    assert "--resume" not in killed.message  # it would save nothing
    assert_same_bits(go_on(tmp_path / "out"), whole)


def test_a_killed_parent_leaves_a_run_that_goes_on(pack: Pack, whole: RunOutcome, tmp_path: Path) -> None:
    options = ["--seq-len", 16, "--steps", STEPS, "--checkpoint-every", 2, "--threads", 1, "--lora-rank", 4]
    options += ["--lora-alpha", 8, "--budget", "400MB", "--model", pack.directory, "--out", tmp_path / "out"]
    with waiting_after_steps() as next_step:
        next_step(1)
        next_step(2)
        with subprocess.Popen(memsim_command("run", *options), stderr=subprocess.PIPE, text=True) as parent:
            assert parent.stderr is not None
            assert any(line.startswith("step 3/") for line in parent.stderr)
            (worker,) = workers()
            parent.kill()
    end = time.monotonic() + 60
    while worker.is_running() and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / "out" / ".lock").read_text().startswith(f"{parent.pid} since ")
    assert not (tmp_path / "out" / "result.json").exists()
    assert_same_bits(go_on(tmp_path / "out"), whole)


def test_more_steps_are_those_of_a_longer_run(pack: Pack, whole: RunOutcome, tmp_path: Path) -> None:
    short = run_toy(pack.directory, tmp_path / "out", **(SETTINGS | {"steps": 3}))
    assert short.result.exit_reason == "done"
    notes: list[str] = []
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    same = go_on(tmp_path / "out", RunProgress(note=notes.append))
    assert learned(same.result) == learned(short.result)
    assert notes == [f"the run in {tmp_path / 'out'} has finished its 3 steps; give more with --steps"]
    for change, option in (({"lr": 1.0}, "--lr"), ({"verify": "full"}, "--verify")):
        words = f"has finished its 3 steps, so {option} would change nothing; leave it out, or give more with --steps"
        with pytest.raises(UsageError, match=words):
            go_on(tmp_path / "out", allow=True, **change)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    with pytest.raises(UsageError, match=r"--steps 2: the run in .* has done 3 already"):
        go_on(tmp_path / "out", steps=2)
    assert_same_bits(go_on(tmp_path / "out", steps=STEPS, budget_bytes=500 * 10**6), whole)


@pytest.mark.slow
def test_evaluations_are_done_once(pack: Pack, tmp_path: Path) -> None:
    text = tmp_path / "eval.txt"
    text.write_text("another text, to evaluate on. " * 60)
    settings = SETTINGS | {"eval_data": text, "eval_every": 2, "eval_sequences": 2}
    whole = run_toy(pack.directory, tmp_path / "whole", **settings)
    assert [item.step for item in whole.result.evals] == [2, 4, 6]
    run_in_step(pack.directory, tmp_path / "out", signalling(signal.SIGKILL, 5, to_worker=True), **settings)
    text.unlink()  # the ids are in the run's directory
    assert_same_bits(go_on(tmp_path / "out"), whole)


@pytest.mark.parametrize(
    "damaged", ["step-00000004.safetensors", pytest.param("step-00000004.json", marks=pytest.mark.slow)]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    pack: Pack, whole: RunOutcome, tmp_path: Path, damaged: str
) -> None:
    run_in_step(pack.directory, tmp_path / "out", signalling(signal.SIGKILL, 5, to_worker=True), **SETTINGS)
    path = tmp_path / "out" / "checkpoints" / damaged
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    notes: list[str] = []
    outcome = go_on(tmp_path / "out", RunProgress(note=notes.append))
    assert notes[0].startswith(str(path))
    assert notes[0].endswith("; going back to the checkpoint before it")
    assert notes[1] == "going on after step 2"
    assert_same_bits(outcome, whole)


def test_other_circumstances_are_refused_unless_allowed(pack: Pack, whole: RunOutcome, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_toy(pack.directory, out, **(SETTINGS | {"steps": 2}))
    path = out / "checkpoints" / "run.json"
    data = json.loads(path.read_text())
    data["identity"]["versions"]["numpy"] = "1.0"
    data["identity"]["kernels"] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(InputError) as refused:
        go_on(out, steps=STEPS)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"the run in {out} would go on with other bits (kernels 000000000000 before, now ")
    assert "; numpy 1.0 before, now " in message
    assert message.endswith("; allow it with --allow-different-bits")
    assert len(read_result(out / "result.json").steps) == 2
    assert_same_bits(go_on(out, steps=STEPS, allow=True), whole)  # in truth nothing was different


@pytest.mark.slow
def test_a_recorded_run_goes_on_unrecorded(pack: Pack, whole: RunOutcome, tmp_path: Path) -> None:
    run_toy(pack.directory, tmp_path / "out", **(SETTINGS | {"steps": 2, "record": True}))
    outcome = go_on(tmp_path / "out", steps=STEPS)
    assert learned(outcome.result) == learned(whole.result)
    assert (outcome.directory / ADAPTER).read_bytes() == (whole.directory / ADAPTER).read_bytes()


@pytest.mark.slow
def test_a_learning_rate_may_change_if_bits_may(pack: Pack, whole: RunOutcome, tmp_path: Path) -> None:
    run_toy(pack.directory, tmp_path / "out", **(SETTINGS | {"steps": 2}))
    with pytest.raises(InputError, match=r"other bits \(program .* before, now .*\); allow it with"):
        go_on(tmp_path / "out", steps=STEPS, lr=1e-2)
    other = go_on(tmp_path / "out", steps=STEPS, lr=1e-2, allow=True)
    assert other.result.exit_reason == "done"
    assert learned(other.result)[:3] == learned(whole.result)[:3]
    assert learned(other.result)[4:] != learned(whole.result)[4:]


def test_a_text_that_changed_is_refused(pack: Pack, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text to train on. " * 60)
    run_toy(pack.directory, tmp_path / "out", **(SETTINGS | {"data": text, "steps": 2}))
    text.write_text("another text to train on. " * 60)
    with pytest.raises(InputError, match=r"other bits \(tokens\.bin .* before, now .*\); allow it with"):
        go_on(tmp_path / "out", steps=STEPS)
    text.unlink()
    with pytest.raises(InputError, match=r"cannot (read|tokenize) .*text\.txt"):
        go_on(tmp_path / "out", steps=STEPS)


def test_a_directory_is_used_by_one_command_at_a_time(pack: Pack, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def try_to_resume(step: StepDone) -> None:
        if step.step == 1:
            with pytest.raises(
                InputError, match=rf"another memsim process \({os.getpid()} since .*\) is writing {out};"
            ):
                go_on(out)
            tried.append(True)

    tried: list[bool] = []
    assert run_toy(pack.directory, out, RunProgress(step=try_to_resume), **SETTINGS).result.exit_reason == "done"
    assert tried == [True]


def test_what_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"holds no run that could go on: there is no run\.json in "):
            go_on(directory)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_loss_is_not_finite_keeps_the_state_before_it(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, whole: RunOutcome, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    # Executed by every Python that starts with this directory on its path: the worker's fourth loss is infinite.
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('execution.worker' in word for word in sys.orig_argv):\n"
        "    from memsim.execution.executor import Executor\n"
        "    import memsim.execution.executor as executor\n"
        "    count, emit = [0], executor._STORAGE_OPS['emit_loss']\n"
        "    def fourth(self, node):\n"
        "        count[0] += 1\n"
        "        if count[0] == 4: self.array(node.inputs[0])[0] = float('inf')\n"
        "        emit(self, node)\n"
        "    executor._STORAGE_OPS['emit_loss'] = fourth\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
        outcome = run_toy(pack.directory, tmp_path / "out", **SETTINGS)
    assert outcome.result.exit_reason == "error"
    command = f"`memsim run --resume {tmp_path / 'out'}`"
    assert outcome.message == f"the loss is inf at step 4; lower --lr; {command} goes on after step 3"
    assert left_behind(tmp_path / "out") == []
    assert_same_bits(go_on(tmp_path / "out"), whole)


@pytest.mark.slow
def test_a_loss_that_explodes_can_be_tried_again_with_a_lower_rate(pack: Pack, tmp_path: Path) -> None:
    sgd = SETTINGS | {"optimizer": OptimizerConfig("sgd", lr=1e38)}
    outcome = run_toy(pack.directory, tmp_path / "out", **sgd)
    assert (outcome.result.exit_reason, len(outcome.result.steps)) == ("error", 1)
    assert "the loss is nan at step 2; lower --lr; " in outcome.message
    again = go_on(tmp_path / "out", lr=1e-3, allow=True)
    assert again.message.startswith("the loss is nan at step 2; ")  # the weights of step 1 are as large as they are
    assert len(again.result.steps) == 1
