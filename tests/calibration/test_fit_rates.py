"""The rates of a device file from what nodes took."""

from dataclasses import replace

import pytest

from memsim.calibration.fit_rates import StepSamples, fit_rates
from memsim.calibration.op_costs import BYTES, FLOPS, LAUNCH, WEIGHTS, NodeSample
from memsim.ir.work import Kind

LAUNCH_S, BETWEEN_S = 2e-5, 5e-5
RATES = {
    Kind.MATMUL: {FLOPS: 1e12, WEIGHTS: 1e10},
    Kind.DENSE: {FLOPS: 2e11},
    Kind.ATTENTION: {FLOPS: 3e11},
    Kind.ELEMENTWISE: {BYTES: 2e10},
    Kind.VOCABULARY: {BYTES: 8e9},
    Kind.UNPACK: {BYTES: 1.2e10},
}
NAMES = {
    "matmul_flops_per_s": 1e12,
    "unpack_weights_per_s": 1e10,
    "dense_flops_per_s": 2e11,
    "attention_flops_per_s": 3e11,
    "elementwise_bytes_per_s": 2e10,
    "vocabulary_bytes_per_s": 8e9,
    "memory_bytes_per_s": 1.2e10,
}


def _run(slower: float = 1.0, between_s: float = BETWEEN_S) -> StepSamples:
    """Return what nodes take at these rates, their work ``slower`` times as long."""
    samples = []
    for kind, rates in RATES.items():
        for flops, weights, n_bytes in ((10**8, 10**5, 10**6), (10**9, 10**6, 10**7), (5 * 10**9, 10**6, 3 * 10**7)):
            features = [0.0] * 5
            features[LAUNCH], features[FLOPS], features[WEIGHTS], features[BYTES] = 1, flops, weights, n_bytes
            work_s = sum(features[feature] / rate for feature, rate in rates.items())
            samples.append(NodeSample(str(kind), kind, "f32", tuple(features), LAUNCH_S + slower * work_s, 3))
    return StepSamples(samples, between_s)


def test_the_rates_that_made_the_times_are_found() -> None:
    found = fit_rates([_run(), _run()], "f32")
    assert found["op_launch_s"] == pytest.approx([LAUNCH_S + BETWEEN_S] * 3, rel=1e-6)
    assert set(found) == {"op_launch_s", *NAMES}
    for name, rate in NAMES.items():
        assert found[name] == pytest.approx([rate] * 3, rel=1e-6)


def test_a_band_goes_from_the_slowest_run_to_the_fastest() -> None:
    found = fit_rates([_run(), _run(slower=3.0, between_s=9e-5)], "f32")
    low, nominal, high = found["op_launch_s"]
    assert (nominal - low, high - nominal) == pytest.approx((2e-5, 2e-5))
    # Not exact: the two runs agree in no line, so a little of the work counts as launch.
    for name in ("dense_flops_per_s", "memory_bytes_per_s"):
        assert found[name] == pytest.approx([NAMES[name] / 3, NAMES[name] / 2, NAMES[name]], rel=0.05)
    low, nominal, high = found["matmul_flops_per_s"]
    assert low < nominal < high


def test_products_count_in_their_own_path_alone() -> None:
    bf16 = [replace(one, compute="bf16") for one in _run().nodes]
    slower = [one for one in _run(slower=5.0).nodes if one.kind is not Kind.ELEMENTWISE]  # the launch is from those
    found = fit_rates([StepSamples(bf16, BETWEEN_S), StepSamples(slower, BETWEEN_S)], "bf16")
    for name in ("matmul_flops_per_s", "unpack_weights_per_s", "attention_flops_per_s"):
        assert found[name] == pytest.approx([NAMES[name]] * 3, rel=1e-6)
    assert found["dense_flops_per_s"][1] < NAMES["dense_flops_per_s"] / 2


def test_unpacking_that_is_hidden_behind_arithmetic_has_a_rate() -> None:
    flat = _run()
    nodes = [
        replace(one, seconds=LAUNCH_S + one.features[FLOPS] / 1e12) for one in flat.nodes if one.kind is Kind.MATMUL
    ]
    others = [one for one in flat.nodes if one.kind is not Kind.MATMUL]
    low, nominal, high = fit_rates([StepSamples([*nodes, *others], BETWEEN_S)], "f32")["unpack_weights_per_s"]
    assert 0 < low <= nominal <= high < float("inf")
