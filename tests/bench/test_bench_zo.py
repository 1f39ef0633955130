"""``bench zo``: its figures on runs whose times are known, and on real ones of a toy model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from click.testing import CliRunner

import memsim.bench.step as step
import memsim.bench.zeroth_order as bench
from capped_runs import cache, write_model
from memsim.bench.runs import Done
from memsim.bench.zeroth_order import BF16_PEER, Finding, ZoReport, bench_zo
from memsim.cli import cli
from memsim.errors import InputError
from memsim.host import host_info
from memsim.ir.matrix_format import symmetric
from memsim.models.matrix_formats import Formats
from memsim.results import Result, StepResult
from memsim.runtime.config import RunConfig
from memsim.simulator.device_file import find_device
from toy import toy_config

assert cache  # a fixture, found by name

# Seconds, bytes paged in and unpacked of a step, peak: by schedule.
KNOWN = {
    "mezo": (1.0, 50, 40, 90 * 10**6),
    "mezo-naive": (1.6, 100, 80, 89 * 10**6),
    "tiled": (2.0, 100, 80, 80 * 10**6),
}
COLD_S = {"mezo": 1.5, "mezo-naive": 3.0}
CONFIG = RunConfig(budget_bytes=10**9, model="toy", seq_len=16, steps=2, threads=2)


class FakePeer:
    peak_rss_bytes = 5_000_000

    def __init__(self, *_: object) -> None:
        self.case: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def prepare(self, case: Mapping[str, Any]) -> dict[str, int]:
        assert case["mezo"]
        self.case = case
        return {}

    def time(self, repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
        return {"step": [{"f32": 4.0, "bf16": 1.9}[self.case["dtype"]]] * repeats}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ZoReport:
    blocks = [0]

    def timed_run(config: RunConfig, progress: object) -> Done:
        seconds, paged_in, unpacked, peak = KNOWN[config.schedule]
        seconds = COLD_S[config.schedule] if config.cold else seconds
        moved = {"bytes_paged_in": paged_in, "bytes_unpacked": unpacked}
        steps = tuple(
            StepResult(step_s=seconds + 50 * (index == 0), loss=1.0, **moved) for index in range(config.steps)
        )
        blocks[0] += (200 + paged_in * config.steps) if config.cold else 0  # the weights are checked first
        return Done(
            Result(
                command="run", source="measured", model="toy", compute="f32", host=host_info(),
                schedule=config.schedule, versions={}, steps=steps, peak_footprint_bytes=peak,
                page_cache="cold" if config.cold else "warm",
            ),
            1,
        )  # fmt: skip

    pack = SimpleNamespace(config=toy_config(), formats=Formats(symmetric(32)), n_bytes=200 * 512)
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path))
    monkeypatch.setattr(bench, "timed_run", timed_run)
    monkeypatch.setattr(bench, "_disk_blocks", lambda: blocks[0])
    monkeypatch.setattr(bench, "prepare_kernels", lambda *_: None)
    monkeypatch.setattr(bench, "find_model", lambda *_: (pack, "toy"))
    monkeypatch.setattr(step, "Contestant", FakePeer)
    monkeypatch.setattr(step, "torch_is_here", lambda: True)
    return bench_zo(CONFIG, 2, find_device("iphone-15-pro-max"), lambda text: None)


def test_every_figure_comes_from_its_runs(report: ZoReport) -> None:
    assert [(item.run.schedule, item.run.page_cache, item.time.repeats) for item in report.runs] == [
        ("mezo", "warm", 4),
        ("mezo-naive", "warm", 4),
        ("mezo", "cold", 4),
        ("mezo-naive", "cold", 4),
        ("tiled", "warm", 4),
    ]
    assert [item.disk_bytes for item in report.runs] == [0, 0, 50 * 512, 100 * 512, 0]
    found = {finding.name: finding for finding in report.findings}
    values = {name.removesuffix(", of mezo-naive's"): finding.value for name, finding in found.items()}
    assert values["weights paged in"] == values["weights unpacked"] == 0.5
    assert values["read from disk, cold"] == 0.5
    assert values["seconds"] == pytest.approx(1 / 1.6)
    assert values["seconds, cold"] == 0.5
    assert values["footprint above tiled's"] == 10**7
    assert values[f"faster than {BF16_PEER}"] == pytest.approx(1.9)
    assert [name for name, finding in found.items() if finding.holds is False] == [f"faster than {BF16_PEER}"]


def test_a_phone_reads_half_for_a_cold_step_and_is_faster(report: ZoReport) -> None:
    (simulated,) = (finding for finding in report.findings if finding.name.endswith("simulated"))
    assert simulated.band is not None and simulated.holds is None
    assert 0.5 < simulated.band.low <= simulated.value <= simulated.band.high < 1.0


def test_a_figure_holds_within_its_bounds_only() -> None:
    figure = Finding(name="x", value=1.0, at_most=1.0)
    assert figure.holds
    assert not replace(figure, value=1.01).holds
    assert not replace(figure, at_most=None, at_least=1.01).holds


@pytest.mark.usefixtures("cache")
def test_real_runs_of_a_toy_model(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "torch_is_here", lambda: False)
    model, file = write_model(disk / "bench-zo-model"), tmp_path / "zo.json"
    arguments = ["--model", str(model.directory), "--seq-len", "16", "--steps", "1", "--rounds", "1", "--threads", "1"]
    done = CliRunner().invoke(cli, ["bench", "zo", *arguments, "--json", str(file)], prog_name="memsim")
    assert done.exception is None
    plain = json.loads(file.read_text())
    assert (plain["command"], plain["settings"]) == ("bench zo", {"steps": 1, "rounds": 1})
    values = {finding["name"]: finding["value"] for finding in plain["findings"]}
    assert values["weights paged in, of mezo-naive's"] == values["weights unpacked, of mezo-naive's"] == 0.5
    # Cold runs read the disk at every page-in: of both, whatever is read beside the weights.
    assert 0 < values["read from disk, cold, of mezo-naive's"] < 1
    assert "no peers: install the extra `torch`" in done.stdout
    assert "weights paged in, of mezo-naive's" in done.stdout
    with pytest.raises(InputError, match="no-such-phone"):
        CliRunner().invoke(cli, ["bench", "zo", "--device", "no-such-phone"], catch_exceptions=False)
