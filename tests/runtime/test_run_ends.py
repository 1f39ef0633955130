"""Runs that break a limit or end in another way than they should: one message, one exit code, nothing left behind."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import memsim.runtime.launch
from capped_runs import (
    MB,
    RUN_FILES,
    best_enforcement,
    cache,
    files_in,
    groups,
    left_behind,
    memsim_command,
    run_toy,
    shared_cache,
    workers,
    write_model,
)
from memsim.cap.footprint import start_time
from memsim.errors import LimitError, WorkerError
from memsim.ir.serialize import load_program
from memsim.result_file import read_result
from memsim.run_directory.events import read_events
from memsim.runtime.run_progress import RunProgress, StepDone
from memsim.runtime.supervise import exit_code
from memsim.weights.pack import Pack

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

WATCHED = ["rlimit+watchdog", "watchdog"]


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "ends-model")


# -- a run that breaks a limit -----------------------------------------------------------------------------------------


def test_a_plan_over_the_budget_is_refused_before_anything_is_made(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(LimitError) as refused:
        run_toy(pack.directory, tmp_path / "some" / "out", seq_len=1024, budget_bytes=90 * MB)
    assert refused.value.exit_code == 3
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("mebp needs ")
    assert "MB over the budget of 90.0 MB (" in message
    assert re.search(r" the peak is at node \d+ \(lora_backward, block_00\d backward\) with block_00\d/r\.", message)
    assert list(tmp_path.iterdir()) == []


def test_nine_tenths_of_the_peak_are_killed_at_the_cap(pack: Pack, tmp_path: Path) -> None:
    finished = run_toy(pack.directory, tmp_path / "fits", seq_len=1024, steps=1).result
    budget = (finished.peak_footprint_bytes or 0) * 9 // 10
    assert budget > (finished.baseline_footprint_bytes or 0) + 4 * MB  # it dies at work, not while loading
    outcome = run_toy(pack.directory, tmp_path / "out", seq_len=1024, budget_bytes=budget, plan_check=False)
    result = outcome.result
    assert (result.exit_reason, result.fits, exit_code(result.exit_reason)) == ("killed_at_cap", False, 3)
    if result.enforcement != "watchdog":  # which looks too late to hold anything
        assert (result.peak_footprint_bytes or 0) <= budget
    nodes = load_program(outcome.directory / "program.jsonl").program.nodes
    events = list(read_events(outcome.directory / "events.jsonl"))
    last = len(events)  # nodes run in order up to the one that broke the cap
    where = f"killed at the cap of {budget / MB:,.1f} MB at step 1, node {last} ({nodes[last]})"
    assert outcome.message.startswith(f"{where}; the highest footprint seen was ")
    assert outcome.message.endswith(" MB. Raise --budget, shorten --seq-len, or lower --lora-rank")
    assert files_in(outcome.directory) == RUN_FILES
    assert left_behind(outcome.directory) == []
    assert read_result(outcome.directory / "result.json").exit_reason == "killed_at_cap"


def test_a_budget_below_the_interpreter_is_killed_while_loading(pack: Pack, tmp_path: Path) -> None:
    outcome = run_toy(pack.directory, tmp_path / "out", budget_bytes=40 * MB, plan_check=False)
    assert outcome.result.exit_reason == "killed_at_cap"
    assert outcome.message.startswith("killed at the cap of 40.0 MB while it loaded its libraries; ")
    assert outcome.result.baseline_footprint_bytes is None
    assert outcome.result.steps == ()
    assert left_behind(outcome.directory) == []


@pytest.mark.parametrize("enforcement", [None, *WATCHED])
def test_an_unplanned_allocation_of_twice_the_budget_is_killed(
    pack: Pack, tmp_path: Path, enforcement: str | None
) -> None:
    budget = 160 * MB
    outcome = run_toy(
        pack.directory,
        tmp_path / "out",
        budget_bytes=budget,
        balloon_bytes=2 * budget,
        enforcement=enforcement,
        decimal=False,
    )
    assert outcome.result.exit_reason == "killed_at_cap"
    assert outcome.result.fits is False
    program = load_program(outcome.directory / "program.jsonl").program
    balloon = next(index for index, node in enumerate(program.nodes) if node.op == "balloon")
    assert f"killed at the cap of 152.6 MiB at step 1, node {balloon} (balloon, head forward); " in outcome.message
    assert files_in(outcome.directory) == RUN_FILES
    assert left_behind(outcome.directory) == []


# -- a run that ends in another way ------------------------------------------------------------------------------------


def signal_worker(number: signal.Signals) -> RunProgress:
    """Return callbacks that send the worker a signal after its first step."""

    def send(step: StepDone) -> None:
        if step.step == 1:
            (worker,) = workers()
            worker.send_signal(number)

    return RunProgress(step=send)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGSEGV, "error"), (signal.SIGKILL, "killed"), (signal.SIGTERM, "killed")]
)
def test_a_worker_that_dies_is_one_line_and_exit_code_1(
    pack: Pack, tmp_path: Path, number: signal.Signals, reason: str
) -> None:
    outcome = run_toy(pack.directory, tmp_path / "out", signal_worker(number), steps=500)
    result = outcome.result
    assert (result.exit_reason, exit_code(result.exit_reason or "done"), result.fits) == (reason, 1, None)
    assert outcome.message.startswith(f"the worker ended with signal {number.name} at step ")
    assert "\n" not in outcome.message
    assert len(result.steps) >= 1
    assert files_in(outcome.directory) == RUN_FILES
    assert left_behind(outcome.directory) == []


def test_a_worker_that_dies_before_it_may_start_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, tmp_path: Path
) -> None:
    def admit(*_: object) -> None:
        for worker in workers():  # none at the first call, which is about the plan
            worker.kill()
            while start_time(worker.pid) is not None:
                time.sleep(0.01)

    monkeypatch.setattr(memsim.runtime.launch, "admit", admit)
    outcome = run_toy(pack.directory, tmp_path / "out")
    assert outcome.result.exit_reason == "killed"
    assert outcome.message == "the worker ended with signal SIGKILL at step 1, node 0 (next_batch, step forward)"


def test_the_message_names_what_came_after_the_last_node(pack: Pack, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("a text that takes minutes to evaluate on. " * 20_000)

    def kill(step: StepDone) -> None:
        time.sleep(1)  # it evaluates by now, and waits for us to read what it says
        (worker,) = workers()
        worker.kill()

    settings = {"seq_len": 64, "steps": 1, "eval_data": text, "eval_sequences": 10**6}
    outcome = run_toy(pack.directory, tmp_path / "out", RunProgress(step=kill), **settings)
    assert outcome.message == "the worker ended with signal SIGKILL while it was evaluating after step 1"
    assert files_in(outcome.directory) == RUN_FILES


def test_ctrl_c_keeps_the_steps_that_are_done(pack: Pack, tmp_path: Path) -> None:
    def interrupt(step: StepDone) -> None:
        if step.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    outcome = run_toy(pack.directory, tmp_path / "out", RunProgress(step=interrupt), steps=500)
    assert (outcome.result.exit_reason, exit_code("interrupted"), outcome.result.fits) == ("interrupted", 130, None)
    n_steps = len(outcome.result.steps)
    command = f"`memsim run --resume {outcome.directory}`"
    assert outcome.message == f"interrupted after {n_steps} steps; {command} goes on after step {n_steps}"
    assert 2 <= n_steps < 500
    assert files_in(outcome.directory) == RUN_FILES
    assert left_behind(outcome.directory) == []


def test_an_error_of_the_parent_takes_the_worker_with_it(pack: Pack, tmp_path: Path) -> None:
    def fail(step: StepDone) -> None:
        raise OSError("the terminal has gone")

    with pytest.raises(OSError, match="the terminal has gone"):
        run_toy(pack.directory, tmp_path / "some" / "out", RunProgress(step=fail), steps=500)
    assert list(tmp_path.iterdir()) == []
    assert left_behind(tmp_path / "some") == []


def test_the_worker_dies_with_its_parent_and_the_next_run_removes_its_group(pack: Pack, tmp_path: Path) -> None:
    command = memsim_command("run", "--budget", "400MB", "--model", pack.directory, "--seq-len", 64, "--steps", 10**6)
    with subprocess.Popen([*command, "--out", tmp_path / "out"], stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stderr is not None
        assert any(line.startswith("step 1/") for line in parent.stderr)
        (worker,) = workers()
        alive = groups(parent.pid)
        worker.suspend()  # it cannot notice by itself that nobody listens any more
        parent.kill()
    end = time.monotonic() + 60
    while start_time(worker.pid) is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert start_time(worker.pid) is None
    assert [path for path in alive if not path.exists()] == []  # nobody was left to remove it
    assert len(alive) == (best_enforcement() in ("cgroup1", "cgroup2"))
    assert run_toy(pack.directory, tmp_path / "next", seq_len=64).result.exit_reason == "done"
    assert [path for path in alive if path.exists()] == []
    assert not [name for name in files_in(tmp_path) if "scratch" in name]


@pytest.mark.parametrize("after", ["", "tokenizing"])
def test_a_kernel_that_is_not_in_the_cache_is_compiled_again_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, tmp_path: Path, after: str
) -> None:
    run_toy(pack.directory, tmp_path / "first", seq_len=16, steps=1)
    own = tmp_path / "cache"
    shutil.copytree(shared_cache(), own)
    monkeypatch.setenv("MEMSIM_CACHE", str(own))
    stages: list[str] = []
    notes: list[str] = []

    def lose(stage: str) -> None:
        """Remove it before the run, or once the run has found that everything is there."""
        stages.append(stage)
        if stages.count(after) == 1 and stage == after:
            for index in own.rglob("norm.rmsnorm_forward-*.nbi"):
                index.unlink()

    lose("")
    progress = RunProgress(stage=lose, note=notes.append)
    again = run_toy(pack.directory, tmp_path / "again", progress, seq_len=16, steps=1)
    assert again.result.exit_reason == "done"
    assert [stage for stage in stages if stage.startswith("compiling kernels ")], stages
    told = [note for note in notes if "kernel rmsnorm_forward is not in the kernel cache" in note]
    assert len(told) == (after != ""), notes


def test_an_error_that_the_worker_reports_leaves_nothing(pack: Pack, tmp_path: Path) -> None:
    shutil.copytree(pack.directory, tmp_path / "damaged")
    path = tmp_path / "damaged" / "block_002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WorkerError, match=r"block_002\.safetensors does not match its checksum") as ended:
        run_toy(tmp_path / "damaged", tmp_path / "out")
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "out").exists()
    assert left_behind(tmp_path / "out") == []


def test_a_full_scratch_disk_ends_the_run_in_one_line(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    # Executed by every Python that starts with this directory on its path: the worker's disk is full.
    (site / "sitecustomize.py").write_text(
        "import errno, os\n"
        "def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "os.posix_fallocate = full\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    with pytest.raises(WorkerError, match=r"the scratch directory .*out is full: spilling needs \d+\.\d MiB"):
        run_toy(pack.directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kernels_that_cannot_be_compiled_end_the_run_in_one_line(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['numba'] = None\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WorkerError, match="^cannot compile the kernels: .*numba.*") as ended:
        run_toy(pack.directory, tmp_path / "out")
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "out").exists()
