"""The rates of a device file, fitted to steps that really ran on the machine.

Kernels that are called again and again on the same arrays find them in a cache and their threads awake: such rates
promise a step in half of its time or less. So a rate is what the nodes of a kind reached together, inside steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from memsim.calibration.op_costs import BYTES, FLOPS, LAUNCH, WEIGHTS, NodeSample, fit_line
from memsim.ir.work import Kind

_LEAST_SHARE = 0.02
"""Of the time of products, what unpacking, and what arithmetic, takes at least: a fit that finds less found noise."""

_RATES = {
    "dense_flops_per_s": (Kind.DENSE, FLOPS),
    "attention_flops_per_s": (Kind.ATTENTION, FLOPS),
    "elementwise_bytes_per_s": (Kind.ELEMENTWISE, BYTES),
    "vocabulary_bytes_per_s": (Kind.VOCABULARY, BYTES),
    "memory_bytes_per_s": (Kind.UNPACK, BYTES),  # reads little and writes floats: the plainest traffic of a step
}


@dataclass(frozen=True, slots=True)
class StepSamples:
    """What the nodes of one run took, and the seconds between two of them."""

    nodes: Sequence[NodeSample]
    between_s: float


def fit_rates(runs: Sequence[StepSamples], compute: str) -> dict[str, list[float]]:
    """Return [low, nominal, high] of every rate that kernels decide, by its name in device files.

    Nominal is what all runs together reached. Each of them reached something else; low and high are the least and the
    most of that.

    Args:
        runs: Of different schedules and lengths; every kind of op but storage occurs in one of them.
        compute: The compute path of products with packed weights, ``f32`` or ``bf16``. Those, and attention, have
            kernels of their own in each, and count in the runs on this path alone.
    """
    runs = [StepSamples([one for one in run.nodes if _counts(one, compute)], run.between_s) for run in runs]
    launch_s = fit_line(_of_kind(runs, Kind.ELEMENTWISE), (LAUNCH, BYTES))[LAUNCH]
    between = [run.between_s for run in runs]
    rates = {"op_launch_s": [launch_s + gap for gap in (min(between), median(between), max(between))]}
    for name, (kind, feature) in _RATES.items():
        found = _above(_of_kind(runs, kind), launch_s)
        costs = {feature: _seconds(found) / _amount(found, feature)}
        rates[name] = _band(costs, feature, _spread(runs, kind, launch_s, costs))
    products = _above(_of_kind(runs, Kind.MATMUL), launch_s)
    fitted = fit_line(products, (FLOPS, WEIGHTS))
    least_s = _LEAST_SHARE * _seconds(products)
    costs = {feature: max(fitted[feature], least_s / _amount(products, feature)) for feature in (FLOPS, WEIGHTS)}
    spread = _spread(runs, Kind.MATMUL, launch_s, costs)
    rates["matmul_flops_per_s"] = _band(costs, FLOPS, spread)
    rates["unpack_weights_per_s"] = _band(costs, WEIGHTS, spread)
    return rates


def _counts(sample: NodeSample, compute: str) -> bool:
    return sample.compute == compute or sample.kind not in (Kind.MATMUL, Kind.ATTENTION)


def _of_kind(runs: Sequence[StepSamples], kind: Kind) -> list[NodeSample]:
    return [sample for run in runs for sample in run.nodes if sample.kind is kind]


def _above(samples: Sequence[NodeSample], launch_s: float) -> list[NodeSample]:
    """Return the samples without their launches."""
    return [
        NodeSample(
            one.op, one.kind, one.compute, one.features, max(one.seconds - launch_s, one.seconds / 10), one.count
        )
        for one in samples
    ]


def _seconds(samples: Sequence[NodeSample]) -> float:
    return sum(sample.seconds * sample.count for sample in samples)


def _amount(samples: Sequence[NodeSample], feature: int) -> float:
    return sum(sample.features[feature] * sample.count for sample in samples)


def _spread(
    runs: Sequence[StepSamples], kind: Kind, launch_s: float, costs: Mapping[int, float]
) -> tuple[float, float]:
    """Return the least and the largest ratio of what a run's nodes took to what launches and ``costs`` say.

    1 is between them. Launches are left in: where they are most of a short node's time, the rest of it says little.
    """
    ratios = [1.0]
    for run in runs:
        if found := _of_kind([run], kind):
            said_s = sum(cost * _amount(found, feature) for feature, cost in {LAUNCH: launch_s, **costs}.items())
            ratios.append(_seconds(found) / said_s)
    return min(ratios), max(ratios)


def _band(costs: Mapping[int, float], feature: int, spread: tuple[float, float]) -> list[float]:
    rate = 1 / costs[feature]
    least, most = spread
    return [rate / most, rate, rate / least]
