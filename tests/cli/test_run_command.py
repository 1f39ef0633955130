"""``memsim run`` as a user types it, in a process of its own: what it prints, writes and answers."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from capped_runs import (
    ADAPTER_FILES,
    RUN_FILES,
    best_enforcement,
    cache,
    files_in,
    groups,
    run_command,
    start_command,
    write_model,
)
from memsim.result_file import read_result
from memsim.weights.pack import Pack

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

SMALL = ["--budget", "400MB", "--seq-len", 64, "--steps", 3, "--threads", 1]


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "command-model")


def test_a_run_prints_its_result_on_stdout_and_its_progress_on_stderr(pack: Pack, tmp_path: Path) -> None:
    done = run_command(pack.directory, tmp_path, *SMALL, "--out", "out", "--json", "record.json")
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "out" / "result.json")
    assert (tmp_path / "record.json").read_bytes() == (tmp_path / "out" / "result.json").read_bytes()
    assert files_in(tmp_path / "out") == RUN_FILES | ADAPTER_FILES

    rows = {line[:16].strip(): line[16:] for line in done.stdout.splitlines()}
    assert rows["model"] == "command-model, mebp, seq 64, LoRA rank 4"
    assert rows["verdict"] == f"done under 400.0 MB ({best_enforcement()})"
    peak, planned = ((value or 0) / 1e6 for value in (result.peak_footprint_bytes, result.planned_footprint_bytes))
    assert rows["peak footprint"] == f"{peak:.1f} MB (planned {planned:.1f} MB)"
    assert rows["baseline"] == f"{(result.baseline_footprint_bytes or 0) / 1e6:.1f} MB interpreter, libraries, kernels"
    assert rows["working set"] == f"{(result.peak_working_set_bytes or 0) / 1e6:.1f} MB"
    assert rows["loss"] == f"{result.steps[0].loss:.4f} -> {result.steps[-1].loss:.4f}"
    assert rows["weights"] == "synthetic weights: memory and time are real, loss is not"

    progress = done.stderr.splitlines()
    assert f"planned footprint {planned:.1f} MB under a budget of 400.0 MB" in done.stderr
    assert "synthetic weights: memory and time are real, loss is not" in progress
    steps = [line for line in progress if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/3", "2/3", "3/3"]
    assert f"loss {result.steps[0].loss:.4f}  accuracy " in steps[0]


def test_json_on_stdout_is_alone_there(pack: Pack, tmp_path: Path) -> None:
    done = run_command(pack.directory, tmp_path, *SMALL, "--json", "-")
    assert done.returncode == 0, done.stderr
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.endswith("-command-model-mebp")
    assert json.loads(done.stdout) == json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_options_reach_the_worker(pack: Pack, tmp_path: Path, optimizer: str) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "the quick brown fox jumps over the lazy dog. "}\n' * 40)
    (tmp_path / "eval.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    options = ["--data", "train.jsonl", "--eval-data", "eval.txt", "--eval-every", 1, "--eval-sequences", 2]
    options += ["--optimizer", optimizer, "--lr", "0.3", "--accumulate", 2, "--page-cache", "cold", "--seed", 7]
    options += ["--schedule", "backprop", "--target-modules", "v_proj,down_proj", "--lora-alpha", 8, "--out", "out"]
    done = run_command(pack.directory, tmp_path, *SMALL, *options)
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "out" / "result.json")
    assert (result.optimizer, result.schedule, result.page_cache) == (optimizer, "backprop", "cold")
    assert [item.step for item in result.evals] == [1, 2, 3]
    losses = [item.loss or 0.0 for item in result.evals]
    assert losses == sorted(losses, reverse=True)  # one sentence again and again is soon learnt
    assert f"eval at 3       loss {losses[-1]:.4f}" in done.stdout
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (4, 8, ["v_proj", "down_proj"])


def test_breaking_the_cap_is_exit_code_3_and_one_line(pack: Pack, tmp_path: Path) -> None:
    options = [*SMALL, "--test-balloon", "800MB", "--out", "out", "--json", "-"]
    with start_command(pack.directory, tmp_path, *options) as process:
        printed, complaint = process.communicate()
    assert process.returncode == 3
    *_, last = complaint.splitlines()
    assert last.startswith("memsim: killed at the cap of 400.0 MB at step 1, node ")
    assert "(balloon, head forward); the highest footprint seen was " in last
    assert last.endswith("Raise --budget, shorten --seq-len, or lower --lora-rank")
    assert "Traceback" not in complaint
    assert json.loads(printed)["exit_reason"] == "killed_at_cap"
    assert files_in(tmp_path) == {"out", *(f"out/{name}" for name in RUN_FILES)}
    assert groups(process.pid) == []


def test_a_refused_plan_is_exit_code_3_and_one_line(pack: Pack, tmp_path: Path) -> None:
    done = run_command(pack.directory, tmp_path, "--budget", "100MB", "--seq-len", 1024, "--schedule", "mebp")
    assert (done.returncode, done.stdout) == (3, "")
    *progress, line = done.stderr.splitlines()
    assert "planned footprint" not in "".join(progress)  # refused before that; kernels may have been compiled
    assert line.startswith("memsim: mebp needs ")
    assert "over the budget of 100.0 MB (" in line
    assert "is the least that is taken); the peak is at node " in line
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_exit_code_130_and_keeps_the_record(pack: Pack, tmp_path: Path, number: signal.Signals) -> None:
    forever = ["--budget", "400MB", "--seq-len", 64, "--steps", 10**6, "--threads", 1, "--out", "out"]
    with start_command(pack.directory, tmp_path, *forever) as process:
        assert process.stderr is not None
        assert any(line.startswith("step 1/") for line in process.stderr)
        (worker,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        printed, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not worker.is_running()
    assert "verdict         interrupted under 400.0 MB" in printed
    *_, last = complaint.splitlines()
    result = read_result(tmp_path / "out" / "result.json")
    assert result.exit_reason == "interrupted"
    out = tmp_path / "out"
    assert last.startswith(f"memsim: interrupted after {len(result.steps)} steps; `memsim run --resume {out}` goes on ")
    assert last.endswith(f"after step {len(result.steps)}")
    assert files_in(tmp_path / "out") == RUN_FILES
    assert groups(process.pid) == []
