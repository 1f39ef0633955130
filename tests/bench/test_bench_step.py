"""The arithmetic of ``bench step``, on runs and peers whose times are known."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

import memsim.bench.step as bench
from memsim.bench.runs import Done
from memsim.bench.step import bench_step
from memsim.host import host_info
from memsim.results import Result, StepResult
from memsim.runtime.config import RunConfig
from toy import toy_config

PEER_S = {("f32", True): 6.0, ("bf16", False): 3.0}


class FakeContestant:
    peak_rss_bytes = 5_000_000

    def __init__(self, module: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.case: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def prepare(self, case: Mapping[str, Any]) -> dict[str, int]:
        self.case = case
        return {"amx": 10**12, "f32": 10**12}

    def time(self, repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
        if self.case.get("op") == "roofs":
            return {"amx": [0.5] * repeats, "f32": [5.0] * repeats}
        assert self.case["config"]["hidden_size"] == toy_config().hidden_size
        return {"step": [PEER_S[self.case["dtype"], self.case["checkpointing"]]] * repeats}


def run_of(config: RunConfig, compute: str) -> Result:
    """Every run's first step is slow: it touches its pages for the first time."""
    steps = tuple(StepResult(step_s=50.0 if index == 0 else 1.5, loss=1.0) for index in range(config.steps))
    return Result(
        command="run",
        source="measured",
        model=config.model,
        compute=compute,
        host=host_info(),
        versions={},
        steps=steps,
    )


@pytest.fixture
def outs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> list[Path | None]:
    seen: list[Path | None] = []

    def timed_run(config: RunConfig, progress: object) -> Done:
        seen.append(config.out)
        return Done(run_of(config, request.param), 600 * 10**9)

    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path))
    monkeypatch.setattr(bench, "timed_run", timed_run)
    monkeypatch.setattr(bench, "Contestant", FakeContestant)
    monkeypatch.setattr(bench, "torch_is_here", lambda: True)
    monkeypatch.setattr(bench, "prepare_kernels", lambda *_: None)
    monkeypatch.setattr(bench, "find_model", lambda name, progress: (SimpleNamespace(config=toy_config()), name))
    return seen


CONFIG = RunConfig(budget_bytes=10**9, model="toy", steps=2, threads=2)


@pytest.mark.parametrize(
    ("outs", "roofs"), [("bf16", {"amx": 5.0}), ("f32", {"f32": 0.5})], indirect=["outs"], ids=["bf16", "f32"]
)
def test_a_step_over_its_roof_and_under_its_peers(outs: list[Path | None], roofs: dict[str, float]) -> None:
    report = bench_step(CONFIG, 3, lambda text: None)
    assert len(set(outs)) == 3  # a run a round, each in a directory of its own
    assert not any(out is None or out.exists() for out in outs)
    assert (report.time.median_s, report.time.repeats) == (1.5, 6)
    assert report.times_the_roof == pytest.approx(roofs)  # 600 GFLOP at 2000 GFLOP/s are 0.3 s, at 200 are 3 s
    assert [(peer.time.median_s, peer.time.repeats, peer.speedup) for peer in report.peers] == [(6, 6, 4), (3, 6, 2)]
    assert {peer.peak_rss_bytes for peer in report.peers} == {5_000_000}


@pytest.mark.parametrize("outs", ["f32"], indirect=True)
def test_without_torch_there_are_no_peers(outs: list[Path | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "torch_is_here", lambda: False)
    assert bench_step(CONFIG, 1, lambda text: None).peers == ()


@pytest.mark.parametrize("outs", ["bf16"], indirect=True)
def test_zeroth_order_steps_are_beside_mezos_own(outs: list[Path | None], monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[Mapping[str, Any]] = []

    class Mezo(FakeContestant):
        def prepare(self, case: Mapping[str, Any]) -> dict[str, int]:
            cases.append(case)
            return super().prepare(case)

        def time(self, repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
            return {"step": [4.5] * repeats} if self.case.get("mezo") else super().time(repeats, warm_ups)

    monkeypatch.setattr(bench, "Contestant", Mezo)
    report = bench_step(replace(CONFIG, schedule="mezo"), 1, lambda text: None)
    assert [(peer.name, peer.speedup) for peer in report.peers] == [(name, 3) for name in bench.MEZO_PEERS]
    assert [case["dtype"] for case in cases if case.get("mezo")] == ["f32", "bf16"]
