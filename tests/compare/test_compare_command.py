"""``memsim compare`` as a user types it: real, capped runs of the model that memsim ships."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from capped_runs import cache, memsim_command
from memsim.compare.plots import AXES
from memsim.result_file import read_result

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

SMALL = ["--schedules", "mebp,mezo:2", "--steps", 3, "--seeds", 1, "--seq-len", 32, "--lora-rank", 4]
SMALL += ["--lr-grid", "1e-3", "--lr-grid", "mezo:1e-3,1e-4", "--evals", 3, "--eval-sequences", 2]


def run_compare(directory: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = memsim_command("compare", *arguments)
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done(disk: Path) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    directory = disk / "compare"
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        from capped_runs import shared_cache

        patch.setenv("MEMSIM_CACHE", str(shared_cache()))
        return directory, run_compare(directory, *SMALL, "--out", "out", "--json", "-")


def test_a_comparison_writes_what_its_runs_measured(done: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    directory, process = done
    assert process.returncode == 0, process.stderr
    out = directory / "out"
    record: dict[str, Any] = json.loads(process.stdout)
    assert record == json.loads((out / "compare.json").read_text())
    mebp, mezo = record["contenders"]
    runs = {"test-mebp-3-lr0.001-seed0", f"test-mezo-2-lr{mezo['lr']:g}-seed0"}
    runs |= {"tune-mezo-2-lr0.001", "tune-mezo-2-lr0.0001"}
    assert {path.name for path in out.iterdir()} == runs | {"compare.json", "compare.svg", "settings.json"}

    assert [point["step"] for point in mebp["points"]] == [0, 1, 2, 3]
    assert (mebp["lr"], mebp["lr_losses"]) == (1e-3, {})
    result = read_result(out / "test-mebp-3-lr0.001-seed0" / "result.json")
    assert result.weights == "packed"
    assert not (out / "test-mebp-3-lr0.001-seed0" / "events.jsonl").exists()  # 150 bytes for each of many nodes
    assert [point["loss"]["mean"] for point in mebp["points"]] == [item.loss for item in result.evals]
    assert mebp["points"][-1]["bytes_read"] == sum(step.bytes_paged_in or 0 for step in result.steps)
    assert mebp["points"][-1]["seconds"] == pytest.approx(sum(step.step_s or 0 for step in result.steps))
    # A forward, what is recomputed of it, and a backward of the same products again.
    assert 2 < mebp["points"][1]["forward_passes"] < 4

    rates = {
        f"{lr:g}": read_result(out / f"tune-mezo-2-lr{lr:g}" / "result.json").evals[-1].loss for lr in (1e-3, 1e-4)
    }
    assert mezo["lr_losses"] == rates
    assert mezo["lr"] == float(min(rates, key=lambda lr: rates[lr] or 0.0))
    assert mezo["steps"] == 2
    # Two forwards, on which the adapters' own arithmetic is a little more than on one.
    assert 1.9 < mezo["points"][1]["forward_passes"] < 2.1
    # Before any step, every schedule is the same model on the same text; products may be rounded to bf16.
    assert mezo["points"][0]["loss"]["mean"] == pytest.approx(mebp["points"][0]["loss"]["mean"], rel=1e-2)
    svg = (out / "compare.svg").read_text()
    assert all(label.format(device="iphone-15-pro-max") in svg for label in AXES)


def test_a_finished_comparison_resumes_without_a_run(done: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    directory, process = done
    again = run_compare(directory, *SMALL, "--resume", "out", "--json", "-")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(process.stdout)
    assert "learning rate" not in again.stderr  # the line with which a run begins
    other = run_compare(directory, *SMALL, "--seq-len", 64, "--resume", "out")
    assert other.returncode == 1
    assert other.stderr == "memsim: out holds a comparison with other settings; repeat them, or use --out\n"


def test_schedules_and_schemes_on_a_task_made_of_shipped_text(disk: Path) -> None:
    directory = disk / "compare-task"
    directory.mkdir()
    small = ["--task", "docs-agreement", "--schedules", "mebp:2,mezo:1", "--scheme", "head", "--scheme", "lora"]
    small += ["--seeds", 1, "--seq-len", 96, "--lr-grid", "1e-2", "--evals", 1, "--eval-sequences", 10]
    process = run_compare(directory, *small, "--out", "out", "--json", "-")
    assert process.returncode == 0, process.stderr
    record = json.loads(process.stdout)
    assert [item["label"] for item in record["contenders"]] == ["mebp-head", "mezo-head", "mebp", "mezo"]
    assert record["settings"]["data"] == "shipped (train)"
    for contender in record["contenders"]:
        accuracies = [point["accuracy"]["mean"] for point in contender["points"]]
        assert all(round(accuracy * 10, 6).is_integer() for accuracy in accuracies)  # of ten examples
        result = read_result(
            directory / "out" / f"test-{contender['label']}-{contender['steps']}-lr0.01-seed0/result.json"
        )
        assert (result.task, result.scheme) == ("docs-agreement", contender["scheme"])
        assert [item.accuracy for item in result.evals] == accuracies
    head, _, lora, _ = record["contenders"]
    # A classifier of two classes that knows nothing, and nothing but its head has a backward.
    assert head["points"][0]["loss"]["mean"] == pytest.approx(math.log(2), abs=0.2)
    assert head["points"][-1]["forward_passes"] < 1.5 * 2
    assert lora["points"][-1]["forward_passes"] > 2 * 2
    again = run_compare(directory, *small, "--resume", "out", "--json", "-")
    assert json.loads(again.stdout) == record
    other = run_compare(directory, *small, "--no-template", "--resume", "out")
    assert (other.returncode, "a comparison with other settings" in other.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--schedules", "nothing"], 2, "no schedule called 'nothing'"),
        (["--lr-grid", "-1"], 2, "'-1' is not a positive learning rate"),
        (["--seeds", 0], 2, "--seeds 0 is below 1"),
        (["--schedules", "mebp,mezo", "--zo-lr", 1], 2, "--zo-lr is for the schedule hybrid, not mebp"),
        (["--schedules", "mebp,tiled", "--zo-eps", 1], 2, "hybrid), not mebp"),
        (["--schedules", "mezo", "--optimizer", "sgd"], 2, "--optimizer: mezo updates by sgd, as its definition says"),
        (["--scheme", "prefix", "--lora-rank", 4], 2, "--lora-rank belongs to --scheme lora, not to prefix"),
        (["--scheme", "head"], 2, "plain text has none: choose a classification task with --task"),
        (["--scheme", "prefix", "--schedules", "forward-grad"], 2, "forward-grad trains LoRA adapters only"),
        (["--no-template"], 2, "--no-template needs --task"),
        (["--task", "sst2"], 2, "--task sst2 needs --data, --validation-data and --test-data"),
        (["--task", "sst3"], 1, "no task called 'sst3'"),
        (["--task", "docs-agreement", "--test-data", "none.jsonl"], 1, "no text file at none.jsonl"),
        (["--out", "a", "--resume", "b"], 2, "give one of them"),
        (["--test-data", "t", "--validation-data", "t"], 2, "t is both --validation-data and --test-data"),
        (["--device", "nothing"], 1, "nothing"),
        (["--json", "no/where.json"], 1, "cannot write no/where.json"),
        (["--resume", "nothing"], 1, "nothing"),
        (["--budget", "1MB", "--seeds", 1, "--lr-grid", 1, "--steps", 1], 3, "MB"),
    ],
)
def test_what_cannot_work_is_one_line_and_a_code(
    tmp_path: Path, arguments: list[object], code: int, message: str
) -> None:
    process = run_compare(tmp_path, *arguments)
    assert process.returncode == code
    assert message in process.stderr.splitlines()[-1]
    assert process.stderr.splitlines()[-1].startswith("memsim: ")
    assert "Traceback" not in process.stderr
    assert code == 3 or not list(tmp_path.iterdir())  # refused before there is a directory
