"""``memsim plan``, and what ``memsim run`` makes of its plans."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from capped_runs import cache, memsim_command, run_command, write_model
from memsim.cli.predicting.plan import command
from memsim.errors import InputError, LimitError, MemsimError, UsageError
from memsim.result_file import from_json, read_result
from memsim.search.plan_file import read_plan
from memsim.weights.pack import Pack

__all__ = ["cache"]

PHONE = ("--device", "iphone-15-pro-max", "--seq-len", "32", "--model", "opt-125m")


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "plan-model")


def _run(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(command, [str(item) for item in arguments])


def test_a_plan_for_a_phone_says_everything(tmp_path: Path) -> None:
    result = _run(*PHONE, "--budget", "300MB", "--json", tmp_path / "plan.json", "--plot", tmp_path / "front.svg")
    assert result.exit_code == 0, result.output
    for text in (
        "opt-125m, seq 32",
        "plan needs",
        "smallest budget",
        "longest seq",
        "tiled",
        "backprop",
        "blocks 0 to",
    ):
        assert text in result.stdout
    record = from_json((tmp_path / "plan.json").read_text())
    planned = record.planned
    assert planned is not None
    assert planned.chosen is not None
    assert (record.source, record.fits, record.schedule) == ("planned", True, "auto")
    assert planned.smallest_budget_bytes <= planned.chosen.need_bytes <= 300 * 10**6
    assert planned.step_s is not None
    assert planned.step_s.low < planned.chosen.step_s < planned.step_s.high
    times = [point.step_s for point in planned.front]
    assert times == sorted(times, reverse=True)
    assert {point.schedule for point in planned.named} == {"mebp", "mesp", "tiled", "backprop", "lcsb"}
    assert "<svg" in (tmp_path / "front.svg").read_text()


def test_nothing_fits_is_exit_code_3_with_the_deficit() -> None:
    result = _run(*PHONE, "--budget", "40MB")
    assert isinstance(result.exception, LimitError)
    assert result.exception.exit_code == 3
    assert "over the budget of 40.0 MB. Raise --budget to" in str(result.exception)
    assert "nothing fits" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--seq-len", 5000), UsageError, "--seq-len 5000 is above the model's max_position_embeddings, 2048"),
        (("--seq-len", 0), UsageError, "--seq-len 0 is below 1"),
        (("--threads", 999), UsageError, "--threads 999 must be from 0 to"),
        (("--emit", "nowhere/plan.json"), InputError, "cannot write nowhere/plan.json: its directory does not exist"),
        (("--lora-rank", 0), UsageError, "--lora-rank 0 is below 1"),
        (("--scheme", "norms", "--lora-rank", 4), UsageError, "--lora-rank belongs to --scheme lora, not to norms"),
        (("--labels", 3), UsageError, "--labels belongs to --scheme head, not to lora"),
        (("--scheme", "head", "--labels", 1), UsageError, "a classifier of 2 to 4096 labels, not 1"),
        (
            ("--scheme", "prompt", "--seq-len", 2040),
            UsageError,
            "2040 and 20 virtual tokens is above the model's max_position_embeddings, 2048; shorten it to 2028",
        ),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple, kind: type[MemsimError], words: str) -> None:
    error = _run(*PHONE, *arguments).exception
    assert isinstance(error, kind)
    assert words in str(error)


SCHEMES = {
    "lora": (),
    "norms": (),
    "prefix": ("--virtual-tokens", "5"),
    "prompt": ("--virtual-tokens", "5"),
    "head": ("--labels", "3"),
}


@pytest.mark.parametrize("scheme", ["norms", "prefix", "prompt", "head"])
def test_a_plan_of_every_scheme(tmp_path: Path, scheme: str) -> None:
    result = _run("--device", "iphone-15-pro-max", "--seq-len", "16", "--model", "tiny", "--scheme", scheme,
                  *SCHEMES[scheme], "--emit", tmp_path / "p.json", "--json", tmp_path / "r.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "LoRA" not in result.stdout
    record = from_json((tmp_path / "r.json").read_text())
    assert (record.scheme, record.lora_rank, record.fits) == (scheme, None, True)
    assert record.planned is not None and record.planned.chosen is not None
    assert all(
        record.planned.chosen.step_s <= point.step_s for point in record.planned.named if point.schedule != "lcsb"
    )
    plan = read_plan(tmp_path / "p.json")
    assert (plan.scheme, plan.lora_rank, plan.target_modules) == (scheme, 0, ())
    assert plan.virtual_tokens == (5 if scheme in ("prefix", "prompt") else 0)
    assert plan.labels == (3 if scheme == "head" else 0)


def test_a_plan_of_another_scheme_is_run_as_it_is(cache: Path, pack: Pack, tmp_path: Path, disk: Path) -> None:
    plan, model = tmp_path / "plan.json", pack.directory
    trained = ("--scheme", "prefix", "--virtual-tokens", 6)
    setup = ("--model", model, "--seq-len", 64, "--threads", 1, *trained)
    result = _run(*setup, "--budget", "400MB", "--emit", plan)
    assert result.exit_code == 0, result.output
    command = memsim_command("run", "--plan", plan, "--steps", 1, "--scratch", disk)
    done = subprocess.run([*command, "--out", disk / "prefix"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = read_result(disk / "prefix" / "result.json")
    assert (found.scheme, found.schedule, found.lora_rank) == ("prefix", "auto", None)
    assert found.choices == read_plan(plan).choices
    refused = subprocess.run([*command, "--scheme", "prompt"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--scheme prompt is not what" in refused.stderr
    # A budget that is too small for it: no rank to lower.
    small = subprocess.run([*command, "--budget", "20MB"], cwd=disk, capture_output=True, text=True, check=False)
    assert small.returncode == 3
    assert "over the budget of 20.0 MB" in small.stderr and "--lora-rank" not in small.stderr


def test_a_plan_is_run_as_it_is(cache: Path, pack: Pack, tmp_path: Path, disk: Path) -> None:
    plan, model = tmp_path / "plan.json", pack.directory
    setup = ("--model", model, "--seq-len", 128, "--lora-rank", 4, "--threads", 1)
    result = _run(*setup, "--budget", "400MB", "--emit", plan, "--json", tmp_path / "planned.json")
    assert result.exit_code == 0, result.output
    planned = from_json((tmp_path / "planned.json").read_text())
    done = run_command(model, disk, "--plan", plan, "--steps", 1, "--out", disk / "as-planned")
    assert done.returncode == 0, done.stderr
    found = read_result(disk / "as-planned" / "result.json")
    assert found.choices == planned.choices
    assert found.planned_step_s == planned.planned_step_s
    assert (found.schedule, found.budget_bytes, found.seq_len) == ("auto", 400 * 10**6, 128)
    assert found.planned_peak_bytes == planned.planned_peak_bytes
    # `auto` finds the same.
    done = run_command(model, disk, "--schedule", "auto", "--budget", "400MB", "--seq-len", 128, "--threads", 1,
                       "--steps", 1, "--out", disk / "auto")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_result(disk / "auto" / "result.json").choices == planned.choices
    # Another setup than the plan's, and another model.
    refused = run_command(model, disk, "--plan", plan, "--seq-len", 64)
    assert refused.returncode == 2
    assert "--seq-len 64 is not what" in refused.stderr
    data = json.loads(plan.read_text()) | {"dimensions": "0" * 64}
    plan.write_text(json.dumps(data))
    refused = run_command(model, disk, "--plan", plan)
    assert refused.returncode == 1
    assert "a model of other dimensions" in refused.stderr
    assert read_plan(plan).threads == 1


def test_auto_under_a_budget_below_the_interpreter(cache: Path, pack: Pack, disk: Path) -> None:
    done = run_command(pack.directory, disk, "--schedule", "auto", "--budget", "20MB", "--threads", 1)
    assert done.returncode == 3
    assert "no schedule fits: the smallest needs" in done.stderr
    assert done.stderr.count("\n") <= 3
