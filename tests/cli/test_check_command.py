"""``memsim check`` and ``memsim diff`` as commands, on the toy's stored baseline."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from capped_runs import cache
from memsim.cli import cli
from memsim.errors import UsageError
from memsim.regression.baseline import read_baseline, write_baseline

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

KEPT = Path(__file__).parent.parent.parent / "traces" / "baselines"


def memsim(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A copy of the toy's baseline, which a test may change."""
    for name in ("toy.json", "toy-tiled.json"):
        shutil.copy(KEPT / name, tmp_path)
    return tmp_path / "toy-tiled.json"


def test_check_holds_a_run_to_its_baseline(stored: Path, tmp_path: Path) -> None:
    passed = memsim("check", "--baseline", stored, "--json", tmp_path / "c.json", "--update")
    assert passed.exit_code == 0, passed.output
    assert passed.stdout.endswith(f"{stored}: updated\n")
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["result"]["exit_reason"] == "done"
    kept = read_baseline(stored)
    assert kept.roof_share is not None and 0 < kept.roof_share < 1.5
    assert json.loads(stored.read_text())["settings"]["model"] == "toy.json"

    # The same run against a baseline that took less: a value that is not in it is named.
    value, n_bytes = max(kept.result.peak_by_value.items(), key=lambda item: item[1])
    less = {name: size for name, size in kept.result.peak_by_value.items() if name != value}
    planned = (kept.result.planned_peak_bytes or 0) - n_bytes
    old = replace(kept, result=replace(kept.result, planned_peak_bytes=planned, peak_by_value=less))
    write_baseline(stored, old)
    failed = memsim("check", "--baseline", stored, "--time-tolerance", "9900%")
    assert failed.exit_code == 3
    assert "TOO MUCH" in failed.stdout and value in failed.stdout
    assert "failed: planned_peak_bytes; if this is meant, add --update" in failed.stdout


def test_diff_shows_what_differs() -> None:
    done = memsim("diff", KEPT / "toy-mebp.json", KEPT / "toy-backprop.json")
    assert done.exit_code == 0
    assert "values larger in B at the peak" in done.stdout
    assert "A  toy, mebp, seq 1024, LoRA rank 8, f32" in done.stdout


def test_diff_in_json(tmp_path: Path) -> None:
    done = memsim("diff", KEPT / "toy-mebp.json", KEPT / "toy-tiled.json", "--json", "-")
    plain = json.loads(done.stdout)
    rows = {row["name"]: (row["a"], row["b"]) for row in plain["figures"]}
    assert rows["peak_working_set_bytes"] == tuple(
        read_baseline(KEPT / f"toy-{name}.json").result.peak_working_set_bytes for name in ("mebp", "tiled")
    )


@pytest.mark.parametrize("share", ["x%", "-1%", "2%%", "", "nan", "10001%"])
def test_a_tolerance_that_is_none_is_a_usage_error(stored: Path, share: str) -> None:
    done = memsim("check", "--baseline", stored, "--tolerance", share)
    assert isinstance(done.exception, UsageError)
    assert "is not a share" in str(done.exception)


def test_a_result_record_is_no_baseline(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"schema": "memsim.result/1"}')
    done = memsim("check", "--baseline", tmp_path / "r.json")
    assert "memsim run --save-baseline" in str(done.exception)
