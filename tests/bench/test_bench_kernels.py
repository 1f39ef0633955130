"""The arithmetic of ``bench kernels`` on contestants whose times are known."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Self

import pytest

import memsim.bench.kernels as bench
from memsim.bench.kernels import KernelsConfig, KernelsReport, bench_kernels
from memsim.errors import InputError, UsageError, WorkerError

ROOFS = {"amx": 1000, "avx512_bf16": 200, "f32": 100}  # GFLOP/s
SPEED = {"memsim.bench.kernel_calls": 50, "torch": 25, "numpy": 40}  # GFLOP/s of every product


class FakeContestant:
    """Takes as long as its speed says; every other repeat twice as long, which no median may notice."""

    def __init__(self, module: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.speed = SPEED[arguments[1] if len(arguments) > 1 else module]
        self.case: Mapping[str, Any] = {}
        assert ("OPENBLAS_NUM_THREADS" in environment) and arguments[0] == "2"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def prepare(self, case: Mapping[str, Any]) -> dict[str, int]:
        self.case = case
        return dict.fromkeys(ROOFS, 10**9) if case.get("op") == "roofs" else {}

    def time(self, repeats: int) -> dict[str, list[float]]:
        if self.case.get("op") == "roofs":
            return {name: [1.0 / rate] * repeats for name, rate in ROOFS.items()}
        attrs = self.case.get("attrs")
        rows = self.case["inputs"][0][0][0] if attrs else self.case["rows"]
        n, k = (attrs["n_rows"], attrs["n_columns"]) if attrs else (self.case["n"], self.case["k"])
        seconds = 2 * rows * n * k / self.speed / 1e9
        times = {"whole": [seconds, seconds, 2 * seconds]}
        if attrs:
            times |= {"without_unpacking": [0.9 * seconds] * 3, "unpacking": [0.3 * seconds] * 3}
        return times


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    prepared = SimpleNamespace(footprint_bytes={"f32": 1, "bf16": 1})
    monkeypatch.setattr(bench, "prepare_kernels", lambda threads, progress: prepared)
    monkeypatch.setattr(bench, "Contestant", FakeContestant)
    monkeypatch.setattr(bench, "torch_is_here", lambda: True)
    yield


def quick(**settings: Any) -> KernelsReport:
    config = KernelsConfig(models=("qwen2.5-0.5b", "qwen2.5-3b"), quick=True, threads=2, **settings)
    return bench_kernels(config, lambda text: None)


def test_rates_shares_and_ratios() -> None:
    report = quick()
    assert len(report.rows) == 2 * 2 * 8  # paths, models, four matrices forward and backward
    for row in report.rows:
        assert row.gflop_per_s == pytest.approx(50)
        assert row.unpack_share == pytest.approx(0.1)
        assert row.unpack_alone_share == pytest.approx(0.3)
        if row.compute == "f32":
            assert row.share_of_roof == pytest.approx({"f32": 0.5})
            assert row.speedup == pytest.approx({"torch": 2.0, "numpy": 1.25})
        else:
            assert row.share_of_roof == pytest.approx({"amx": 0.05, "avx512_bf16": 0.25})
            assert row.speedup == pytest.approx({"torch": 2.0})
    assert report.roofs_gflop_per_s == pytest.approx(ROOFS)


def test_shapes_are_the_models_own() -> None:
    shapes = [row.shape for row in quick(computes=("f32",)).rows if row.model == "qwen2.5-0.5b"]
    assert shapes[::2] == ["256 x 896 x 896", "256 x 1152 x 896", "256 x 4864 x 896", "256 x 896 x 4864"]
    (largest,) = {row.flops for row in quick(rows=7).rows if row.label == "down" and row.model == "qwen2.5-3b"}
    assert largest == 2 * 7 * 2048 * 11008


def test_totals_are_all_operations_over_all_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPEED, "torch", 100)
    totals = {(total.op, total.compute): total for total in quick().totals}
    assert len(totals) == 6
    total = totals["linear_q4 + linear_q4_backward_input", "bf16"]
    assert total.gflop_per_s == pytest.approx(50)
    assert total.share_of_roof == pytest.approx({"amx": 0.05, "avx512_bf16": 0.25})
    assert total.speedup == pytest.approx({"torch": 0.5})
    assert total.unpack_share == pytest.approx(0.1)


def test_without_torch_there_is_no_ratio_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "torch_is_here", lambda: False)
    report = quick()
    assert report.peers == ("numpy",)
    assert all("torch" not in row.speedup for row in report.rows)


def test_a_processor_without_bf16_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "prepare_kernels", lambda *_: SimpleNamespace(footprint_bytes={"f32": 1}))
    assert {row.compute for row in quick().rows} == {"f32"}
    with pytest.raises(UsageError, match="avx512_bf16; use --compute f32"):
        quick(computes=("bf16",))


def test_a_wrong_kernel_ends_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: FakeContestant, case: Mapping[str, Any]) -> dict[str, int]:
        if case.get("op") == "linear_q4_backward_input":
            raise WorkerError("linear_q4_backward_input in f32 is wrong")
        return dict.fromkeys(ROOFS, 10**9)

    monkeypatch.setattr(FakeContestant, "prepare", wrong)
    monkeypatch.setattr(FakeContestant, "time", lambda self, repeats: {name: [1.0] for name in (*ROOFS, "whole")})
    with pytest.raises(WorkerError, match="is wrong"):
        quick()


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(InputError, match="no model called 'qwen9'"):
        bench_kernels(KernelsConfig(models=("qwen9",), threads=2), lambda text: None)
