"""Runs for their figures: ``memsim run``'s own worker and cap, its files thrown away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memsim.calibration.measure_steps import finished_run, throw_away
from memsim.errors import WorkerError
from memsim.file_names import PROGRAM_FILE
from memsim.ir.serialize import load_program
from memsim.planner.work import step_work
from memsim.progress_types import StageProgress
from memsim.results import Result
from memsim.runtime.config import RunConfig


@dataclass(frozen=True, slots=True)
class Done:
    """A finished run: its record, and the floating-point operations of one of its steps."""

    result: Result
    flops: int


def timed_run(config: RunConfig, progress: StageProgress) -> Done:
    """Run to the end.

    Raises:
        WorkerError: It ended in another way than done.
    """
    assert config.out is not None
    result = finished_run(config, progress)
    return Done(result, step_work(load_program(config.out / PROGRAM_FILE).program).flops)


def footprints(configs: Sequence[RunConfig], progress: StageProgress) -> list[Result]:
    """Run every configuration and return the records: peak footprint, baseline and working set are in them."""
    return [done.result for done in _all(configs, progress)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossComparison:
    """Two runs on the same text, seeds and weights, in f32 and in bf16.

    Attributes:
        largest_difference: Of the losses of a step, relative to the one in f32.
        mean_difference: The mean over the steps of the same.
    """

    runs: tuple[Result, Result]
    largest_difference: float
    mean_difference: float


def compare_losses(f32: RunConfig, bf16: RunConfig, progress: StageProgress) -> LossComparison:
    """Run both and compare their losses step by step.

    Raises:
        WorkerError: A loss is not finite.
    """
    one, other = (done.result for done in _all((f32, bf16), progress))
    differences = []
    for step, (a, b) in enumerate(zip(one.steps, other.steps, strict=True), start=1):
        if a.loss is None or b.loss is None:
            raise WorkerError(f"the loss of step {step} is not finite; use a smaller --lr")
        differences.append(abs(a.loss - b.loss) / abs(a.loss))
    return LossComparison(
        runs=(one, other),
        largest_difference=max(differences),
        mean_difference=sum(differences) / len(differences),
    )


def _all(configs: Sequence[RunConfig], progress: StageProgress) -> Iterator[Done]:
    with throw_away() as directory:
        for index, config in enumerate(configs):
            progress(f"{index + 1}/{len(configs)} {config.model}, seq {config.seq_len}, {config.compute}")
            yield timed_run(replace(config, out=directory / str(index)), progress)
