"""Predicted against published: fitted on all models, and with each model left out of the fit."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from memsim.ir.work import Kind
from memsim.models.graph import ModelGraph
from memsim.models.presets import preset
from memsim.planner.plan import plan_memory
from memsim.planner.work import Work
from memsim.schedules.published_lowering import PASSES, lower_published
from memsim.simulator.device import Device, Numbers
from memsim.simulator.pagecache import PageCache
from memsim.simulator.published_figures import GROUP_SIZE, LORA, REPETITIONS, SEQ_LEN, TABLE, Measurement
from memsim.simulator.roofline import op_time
from memsim.simulator.thermal import Heat
from memsim.simulator.trace import trace_program
from memsim.simulator.walk import file_cache, footprint, walk

APART = 0.05
"""Relative difference above which two published figures have an order that predictions must keep."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is fitted to the table: three constants of the published runtime on its phone, the same for every model.

    Attributes:
        flops_per_s: All products, at full speed.
        vocabulary_bytes_per_s: Softmax over the logits.
        app_baseline_bytes: The app without a model.
    """

    flops_per_s: float
    vocabulary_bytes_per_s: float
    app_baseline_bytes: float

    def applied(self, numbers: Numbers) -> Numbers:
        """Return ``numbers`` with the fitted ones in place."""
        return replace(
            numbers,
            matmul_flops_per_s=self.flops_per_s,
            dense_flops_per_s=self.flops_per_s,
            attention_flops_per_s=min(self.flops_per_s, numbers.attention_flops_per_s),
            vocabulary_bytes_per_s=self.vocabulary_bytes_per_s,
            app_baseline_bytes=self.app_baseline_bytes,
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One published cell and the step that it is of.

    Attributes:
        work: How often each work occurs in a step.
        waiting_s: Seconds of a warm step that wait for files, cool and hot: no fitted number is in them.
        anonymous_bytes: The working set at its peak.
    """

    published: Measurement
    work: Mapping[tuple[Kind, Work], int]
    waiting_s: tuple[float, float]
    anonymous_bytes: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """A published cell and what the simulator says of it.

    Attributes:
        held_out: The same with the cell's model left out of the fit.
    """

    published: Measurement
    fitted: Measurement
    held_out: Measurement


@dataclass(frozen=True, slots=True)
class Errors:
    """How far predictions are from the published figures, as shares of these.

    Attributes:
        disordered: Pairs of cells in the wrong order that are published more than ``APART`` apart, of ``pairs``.
    """

    mean: float
    worst: float
    disordered: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Validation:
    """The table, predicted.

    Attributes:
        fits: The fitted constants: of all models (key empty), and without the model that is the key.
        errors: By ``memory`` or ``time``, and ``fitted`` or ``held_out``.
    """

    predictions: tuple[Prediction, ...]
    fits: Mapping[str, Fitted]
    errors: Mapping[tuple[str, str], Errors]


def validate_table(device: Device, table: Sequence[Measurement] = TABLE) -> Validation:
    """Predict ``table`` on its device."""
    numbers = device.at("nominal")
    cases = [make_case(cell, device) for cell in table]
    models = list(dict.fromkeys(case.published.model for case in cases))
    fits = {left_out: fit([c for c in cases if c.published.model != left_out], device) for left_out in ("", *models)}
    predictions = tuple(
        Prediction(
            case.published,
            predict(case, device, fits[""].applied(numbers)),
            predict(case, device, fits[case.published.model].applied(numbers)),
        )
        for case in cases
    )
    errors = {
        (what, how): _errors([(read(p.published), read(getattr(p, how))) for p in predictions])
        for what, read in _FIGURES.items()
        for how in ("fitted", "held_out")
    }
    return Validation(predictions, fits, errors)


_FIGURES: dict[str, Callable[[Measurement], float]] = {
    "memory": lambda measurement: measurement.peak_bytes,
    "time": lambda measurement: measurement.step_s,
}


def make_case(cell: Measurement, device: Device) -> Case:
    """Lower a published cell as its runtime would, and add up its step."""
    graph = ModelGraph(preset(cell.model), LORA, SEQ_LEN, GROUP_SIZE)
    program = lower_published(graph, cell.method)
    trace = trace_program(program, plan_memory(program), PASSES)
    numbers = device.at("nominal")
    cache = PageCache(file_cache(numbers, footprint(numbers, device.rule, trace.resident_bytes)))
    walk(trace, numbers, device.rule, cache, advised=False)
    waiting = []
    for hot in (False, True):
        split = walk(trace, numbers, device.rule, cache, advised=False, first=False, hot=hot).split
        waiting.append(split.page_in_s + split.spill_s)
    work = Counter((node.kind, node.work) for node in trace.nodes)
    return Case(cell, work, (waiting[0], waiting[1]), trace.resident_bytes)


def predict(case: Case, device: Device, numbers: Numbers) -> Measurement:
    """Return the step time, a mean of several in a row from cool, and the peak footprint."""
    cool_s, hot_s = (
        wait_s + _ops_s(case, numbers, speed)
        for wait_s, speed in zip(case.waiting_s, (1.0, numbers.thermal_floor), strict=True)
    )
    step_s = fmean(Heat.of(numbers).step_times(cool_s, hot_s, REPETITIONS))
    peak = footprint(numbers, device.rule, case.anonymous_bytes)
    return Measurement(case.published.model, case.published.method, step_s, peak)


def _ops_s(case: Case, numbers: Numbers, speed: float) -> float:
    total = 0.0
    for (kind, work), count in case.work.items():
        time = op_time(kind, work, numbers, speed)
        total += count * (time.compute_s + time.unpack_s)
    return total


def fit(cases: Sequence[Case], device: Device) -> Fitted:
    """Fit the constants to ``cases``: least squares of relative errors, of times and of peaks."""
    numbers = device.at("nominal")

    def error(flops_per_s: float, vocabulary_bytes_per_s: float) -> float:
        applied = Fitted(flops_per_s, vocabulary_bytes_per_s, 0.0).applied(numbers)
        return sum((predict(case, device, applied).step_s / case.published.step_s - 1) ** 2 for case in cases)

    rates = _descend(error, (numbers.dense_flops_per_s, numbers.vocabulary_bytes_per_s))
    # The peak is linear in the baseline: its least squares are a weighted mean.
    empty = replace(numbers, app_baseline_bytes=0.0)
    weights = [1 / case.published.peak_bytes**2 for case in cases]
    missing = [case.published.peak_bytes - predict(case, device, empty).peak_bytes for case in cases]
    baseline = sum(w * m for w, m in zip(weights, missing, strict=True)) / sum(weights)
    return Fitted(*rates, max(baseline, 0.0))


def _descend(error: Callable[[float, float], float], start: tuple[float, float]) -> tuple[float, float]:
    """Return the positive pair of least error near ``start``: a search along each axis with shrinking factors."""
    best, least, factor = start, error(*start), 2.0
    while factor > 1.0001:
        x, y = best
        tried = [(x * factor, y), (x / factor, y), (x, y * factor), (x, y / factor)]
        tried += [(x * factor, y / factor), (x / factor, y * factor)]
        found, candidate = min((error(*pair), pair) for pair in tried)
        if found < least:
            best, least = candidate, found
        else:
            factor **= 0.5
    return best


def _errors(pairs: Sequence[tuple[float, float]]) -> Errors:
    relative = [abs(predicted / published - 1) for published, predicted in pairs]
    ordered = [(a, b) for a, b in combinations(sorted(pairs), 2) if b[0] > a[0] * (1 + APART)]
    wrong = sum(low[1] >= high[1] for low, high in ordered)
    return Errors(fmean(relative), max(relative), wrong, len(ordered))
