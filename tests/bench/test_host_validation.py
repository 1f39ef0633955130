"""``validate --host`` on toys: what is compared, and that nothing is hidden."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from capped_runs import cache, write_model
from memsim.bench.host import HostCase, HostRow, _interleaved, parse_cases, summarise
from memsim.bench.host_runs import CALIBRATION, HELD_OUT
from memsim.cli.predicting.validate import command
from memsim.errors import UsageError

assert cache  # a fixture, found by name


def test_the_held_out_are_many_and_none_of_them_calibrates() -> None:
    calibration, held_out = parse_cases(CALIBRATION), parse_cases(HELD_OUT)
    assert len(set(held_out)) == len(held_out) >= 12
    fitted = {(case.model, case.seq_len) for case in calibration}
    assert not {(case.model, case.seq_len) for case in held_out} & fitted  # another model or another length
    assert {case.schedule for case in held_out} == {"tiled", "mebp", "backprop"}
    assert len({case.model for case in held_out}) >= 4


def test_cases_are_read_from_text() -> None:
    assert parse_cases("a/b:c:tiled:16, m:mebp:8") == [HostCase("a/b:c", "tiled", 16), HostCase("m", "mebp", 8)]
    for wrong in ("m:mebp", "m:mebp:x", "m:mebp:0", "", ":mebp:8"):
        with pytest.raises(UsageError, match="is not MODEL:SCHEDULE:TOKENS"):
            parse_cases(wrong)


def test_calibration_and_held_out_take_turns() -> None:
    calibration = [HostCase("c", "tiled", n) for n in (1, 2)]
    held_out = [HostCase("h", "tiled", n) for n in (1, 2, 3, 4)]
    names = [case.model for case in _interleaved(calibration, held_out)]
    assert names == ["c", "h", "h", "c", "h", "h"]
    assert set(_interleaved(calibration, held_out)) == {*calibration, *held_out}


def _row(step_s: float, simulated_s: float, peak: int, planned: int) -> HostRow:
    return HostRow(
        case=HostCase("m", "tiled", 8),
        calibrates=False,
        peak_bytes=peak,
        planned_peak_bytes=planned,
        simulated_peak_bytes=planned,
        step_s=step_s,
        simulated_step_s=simulated_s,
    )


def test_errors_are_relative_and_a_miss_counts_in_both_directions() -> None:
    failed = HostRow(case=HostCase("m", "tiled", 9), calibrates=False, failure="refused")
    found = summarise([_row(1.0, 0.7, 100, 110), _row(2.0, 2.2, 100, 100), failed])
    assert found["step"].worst == pytest.approx(0.3)
    assert found["step"].mean == pytest.approx(0.2)
    assert (found["planned_peak"].mean, found["planned_peak"].worst) == pytest.approx((0.05, 0.1))


@pytest.mark.usefixtures("cache")
def test_real_runs_are_compared_and_a_failure_is_a_row(disk: Path, tmp_path: Path) -> None:
    model = write_model(disk / "host-model").directory
    file = tmp_path / "host.json"
    calibration = f"{model}:tiled:32,{model}:mebp:32"
    held_out = f"{model}:tiled:64,{model}:mebp:100000"
    arguments = ["--host", "--threads", "1", "--calibration", calibration, "--held-out", held_out, "--json", str(file)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0  # whatever the errors are
    plain = json.loads(file.read_text())
    rows = {(row["case"]["schedule"], row["case"]["seq_len"]): row for row in plain["rows"]}
    assert [row["calibrates"] for row in plain["rows"]].count(True) == 2
    held = rows["tiled", 64]
    assert held["errors"]["step"] == pytest.approx(held["simulated_step_s"] / held["step_s"] - 1)
    assert plain["errors"]["step"]["worst"] == pytest.approx(abs(held["errors"]["step"]))
    assert plain["errors"]["planned_peak"]["worst"] == pytest.approx(abs(held["errors"]["planned_peak"]))
    # A plan of this size is right but for a few MiB that no plan knows of.
    assert abs(held["planned_peak_bytes"] - held["peak_bytes"]) < 8 << 20
    assert "max_position_embeddings" in rows["mebp", 100_000]["failure"]
    assert "failed: " in result.stdout and "1 held-out configurations ran, 1 failed" in result.stdout
    assert f"{held['errors']['step']:+.1%}" in result.stdout


@pytest.mark.usefixtures("cache")
def test_what_calibrates_cannot_be_held_out() -> None:
    arguments = ["--host", "--calibration", "qwen2.5-0.5b:tiled:8", "--held-out", "qwen2.5-0.5b:tiled:8"]
    error = CliRunner().invoke(command, arguments).exception
    assert isinstance(error, UsageError)
    assert "qwen2.5-0.5b:tiled:8 is both calibration and held out" in str(error)
