"""Running a configuration again, and what of it is worse than its baseline says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

from memsim.bench.contestant import Contestant
from memsim.bench.runs import timed_run
from memsim.calibration.measure_steps import throw_away
from memsim.cap.processors import available_threads
from memsim.execution.compile_cache import kernel_environment
from memsim.progress_types import StageProgress
from memsim.regression.baseline import Baseline, from_run
from memsim.regression.differences import Figure, Growth, Held, figures, grown, reading_error_bytes
from memsim.runtime.config import RunConfig
from memsim.runtime.prepare import prepare_kernels

TIME = "step_over_roof"
"""The name of a step's time, in what the measured roof does meanwhile: 1 is at the roof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A run against its baseline.

    Attributes:
        measured: What the run would be as a baseline.
        figures: Every figure, with its limit.
        values: What lived at the peak and did not, or was smaller.
        longer: Values of both peaks that are held until another node now.
        ops: After nodes of which the footprint was higher.
    """

    measured: Baseline
    figures: tuple[Figure, ...]
    values: tuple[Growth, ...]
    longer: tuple[Held, ...]
    ops: tuple[Growth, ...]

    @property
    def failed(self) -> tuple[Figure, ...]:
        """The figures that are above their limits."""
        return tuple(figure for figure in self.figures if figure.failed)


def check(baseline: Baseline, tolerance: float, time_tolerance: float, progress: StageProgress) -> Check:
    """Run a baseline's configuration and compare.

    Args:
        baseline: What to run, and what it took.
        tolerance: Relative growth in bytes that passes.
        time_tolerance: Relative growth in time, measured in what the roof could do meanwhile, that passes.
        progress: Called with what is being done.

    Raises:
        MemsimError: The run was refused, or ended early.
    """
    measured = measure(baseline.settings, progress)
    return compare(measured, baseline, tolerance, time_tolerance)


def measure(config: RunConfig, progress: StageProgress) -> Baseline:
    """Run ``config``, its files thrown away, between two measurements of the roof of its compute path.

    Raises:
        MemsimError: The run was refused, or ended early.
    """
    threads = config.threads or available_threads()
    prepare_kernels(threads, progress)
    with throw_away() as directory, _roofs(threads) as roof:
        rates = [roof()]
        done = timed_run(replace(config, out=directory / "run"), progress)
        rates.append(roof())
        engine = (
            "f32" if done.result.compute == "f32" else max(rates[0].keys() - {"f32"}, key=lambda name: rates[0][name])
        )
        rate = median(measured[engine] for measured in rates)
        share = done.flops / done.result.step_s / rate if done.result.step_s else None
        return from_run(directory / "run", config, done.result, share)


@contextmanager
def _roofs(threads: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Yield what measures the roofs: operations a second by engine."""
    with Contestant("memsim.bench.kernel_calls", [str(threads)], kernel_environment()) as roofs:
        flops = roofs.prepare({"op": "roofs"})
        yield lambda: {name: flops[name] / median(seconds) for name, seconds in roofs.time(5).items()}


def compare(measured: Baseline, baseline: Baseline, tolerance: float, time_tolerance: float | None) -> Check:
    """Compare two baselines of one configuration, the first newer than the second; no time without a tolerance."""
    found = figures(measured.result, baseline.result, tolerance)
    if time_tolerance is not None:
        found.append(_time(measured, baseline, time_tolerance))
    return Check(
        measured=measured,
        figures=tuple(found),
        values=tuple(grown(baseline.result.peak_by_value, measured.result.peak_by_value)),
        longer=tuple(
            Held(name, baseline.held_until[name], node)
            for name, node in measured.held_until.items()
            if baseline.held_until.get(name, node) != node
        ),
        ops=tuple(grown(baseline.peak_by_op_bytes, measured.peak_by_op_bytes, reading_error_bytes())),
    )


def _time(measured: Baseline, baseline: Baseline, tolerance: float) -> Figure:
    """Return the time of a step in what the roof does meanwhile: 1 / share of the roof."""
    before, after = baseline.roof_share, measured.roof_share
    if not before or not after:
        note = "not timed beside the roof; --update stores it"
        return Figure(name=TIME, kind="time", baseline=None, actual=None, note=note)
    if measured.result.compute != baseline.result.compute:
        note = f"the baseline's products are in {baseline.result.compute}, these in {measured.result.compute}"
        return Figure(name=TIME, kind="time", baseline=1 / before, actual=1 / after, note=note)
    return Figure(name=TIME, kind="time", baseline=1 / before, actual=1 / after, limit=(1 + tolerance) / before)
