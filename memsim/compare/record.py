"""Runs as curves: means over seeds, against steps and against everything that steps cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from statistics import fmean, stdev
from typing import Any

from memsim.compare.device_run import DeviceRun
from memsim.compare.experiment import Scored
from memsim.errors import WorkerError
from memsim.host import host_info, versions
from memsim.results import Result

SCHEMA = "memsim.compare/1"


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the seeds: its mean, and the sample standard deviation (0 with one seed)."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation, and what training up to it had cost.

    Attributes:
        loss: Mean cross-entropy on the test text, or of a task's right answers, in nats a token; of a classifier in
            nats an example.
        accuracy: Share of next tokens predicted right, or of a task's examples whose right option was chosen.
        forward_passes: Floating-point operations so far over those of one forward of one sequence.
        bytes_read: Weight bytes paged in so far.
        seconds: Of training on this machine so far, evaluations left out; the mean over the seeds.
        device_s: Of training on the device so far, simulated with its nominal numbers.
    """

    step: int
    loss: Spread
    accuracy: Spread
    forward_passes: float
    bytes_read: int
    seconds: float
    device_s: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One contender of a comparison.

    Attributes:
        label: What tables and plots call it.
        lr: The learning rate that was chosen.
        lr_losses: Each rate that was tried, with its loss on the validation text; None where it diverged.
        peak_footprint_bytes: The highest of all seeds, interpreter included.
        peak_working_set_bytes: The same without the interpreter.
        device_peak_footprint_bytes: On the device, simulated.
        points: From before the first step to after the last one.
    """

    label: str
    schedule: str
    scheme: str
    optimizer: str
    steps: int
    seeds: int
    lr: float
    lr_losses: dict[str, float | None]
    peak_footprint_bytes: int
    peak_working_set_bytes: int
    device_peak_footprint_bytes: int
    points: tuple[Point, ...]

    @property
    def lr_at_edge(self) -> bool:
        """Whether a rate beyond the grid might have been better: the chosen one is its lowest or highest."""
        rates = [float(rate) for rate in self.lr_losses]
        return len(rates) > 1 and self.lr in (min(rates), max(rates))


def curve(scored: Scored, device: DeviceRun) -> Curve:
    """Return the means over the seeds of one contender.

    Raises:
        WorkerError: An evaluation is not a finite number.
    """
    results, first = scored.results, scored.results[0]
    clocks = [_so_far(result, lambda step: step.step_s) for result in results]
    read = _so_far(first, lambda step: step.bytes_paged_in)
    points = []
    for position, evaluation in enumerate(first.evals):
        step = evaluation.step
        at = [result.evals[position] for result in results]
        points.append(
            Point(
                step=step,
                loss=_spread([e.loss for e in at], scored, step),
                accuracy=_spread([e.accuracy for e in at], scored, step),
                forward_passes=step * device.forward_passes,
                bytes_read=int(read[step]),
                seconds=fmean(clock[step] for clock in clocks),
                device_s=device.seconds[step],
            )
        )
    return Curve(
        label=scored.contender.label,
        schedule=scored.contender.schedule,
        scheme=scored.contender.scheme,
        optimizer=str(first.optimizer),
        steps=scored.contender.steps,
        seeds=len(results),
        lr=scored.choice.lr,
        lr_losses={f"{lr:g}": loss for lr, loss in scored.choice.losses.items()},
        peak_footprint_bytes=max(result.peak_footprint_bytes or 0 for result in results),
        peak_working_set_bytes=max(result.peak_working_set_bytes or 0 for result in results),
        device_peak_footprint_bytes=device.peak_footprint_bytes,
        points=tuple(points),
    )


def _so_far(result: Result, cost: Callable[[Any], float | None]) -> list[float]:
    """Return what the first 0, 1, 2, ... steps cost together."""
    return list(accumulate((cost(step) or 0 for step in result.steps), initial=0))


def _spread(values: Sequence[float | None], scored: Scored, step: int) -> Spread:
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        raise WorkerError(
            f"{scored.contender.label}: the loss on the test text is not finite after step {step}; give smaller "
            f"learning rates (--lr-grid)"
        )
    return Spread(fmean(finite), stdev(finite) if len(finite) > 1 else 0.0)


def record(settings: Mapping[str, Any], curves: Sequence[Curve]) -> dict[str, Any]:
    """Return a comparison as plain data for JSON, with the machine and the versions that made it."""
    plain = {"schema": SCHEMA, "command": "compare", "settings": dict(settings)}
    return plain | {
        "contenders": [asdict(curve) for curve in curves],
        "host": asdict(host_info()),
        "versions": versions(),
    }
