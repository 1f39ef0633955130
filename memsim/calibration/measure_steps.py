"""What the nodes of a capped run took: short runs of ``memsim run``'s own worker and cap, for their times alone."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from memsim.calibration.op_costs import NodeSample, features
from memsim.errors import MemsimError, WorkerError
from memsim.file_names import EVENTS_FILE, PROGRAM_FILE
from memsim.files import cache_dir
from memsim.ir.serialize import load_program
from memsim.planner.plan import plan_memory
from memsim.progress_types import StageProgress
from memsim.results import Result
from memsim.run_directory.events import read_events
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig
from memsim.runtime.run_progress import RunProgress
from memsim.simulator.trace import StepTrace, trace_program


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """A run: its record, and the trace of the program that it executed.

    Attributes:
        step_s: The median of its steps but the first, which touches its memory first.
        samples: What its nodes took in them.
        between_s: Seconds of a step that are in no node, for each node.
    """

    result: Result
    trace: StepTrace
    step_s: float
    samples: tuple[NodeSample, ...]
    between_s: float


@contextmanager
def throw_away() -> Iterator[Path]:
    """Yield a directory on the disk of memsim's cache, for the files of runs; it is removed at the end."""
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="bench-") as directory:
        yield Path(directory)


def finished_run(config: RunConfig, progress: StageProgress) -> Result:
    """Run to the end.

    Raises:
        WorkerError: It ended in another way than done.
    """
    try:
        outcome = run(config, RunProgress(stage=progress, note=progress))
    except MemsimError as error:
        raise type(error)(f"{config.model}, seq {config.seq_len}: {error}") from error
    if outcome.result.exit_reason != "done":
        raise WorkerError(f"{config.model}, seq {config.seq_len} ended: {outcome.message}")
    return replace(outcome.result, request=None)  # which names a directory that is thrown away


def measure_steps(config: RunConfig, progress: StageProgress) -> MeasuredSteps:
    """Run ``config``, which has a directory to write to and two steps or more, and read what its nodes took.

    Raises:
        WorkerError: It ended in another way than done.
    """
    assert config.out is not None
    result = finished_run(config, progress)
    program = load_program(config.out / PROGRAM_FILE).program
    trace = trace_program(program, plan_memory(program))
    step_s = median(step.step_s or 0.0 for step in result.steps[1:])
    seconds: list[list[float]] = [[] for _ in program.nodes]
    for event in read_events(config.out / EVENTS_FILE):
        if event.step:
            seconds[event.node].append(event.seconds)
    inside_s = sum(map(sum, seconds)) / (len(result.steps) - 1)
    between_s = max(fmean(step.step_s or 0.0 for step in result.steps[1:]) - inside_s, 0.0) / len(trace.nodes)
    return MeasuredSteps(result, trace, step_s, tuple(_samples(trace, seconds, str(result.compute))), between_s)


def _samples(trace: StepTrace, seconds: Sequence[Sequence[float]], compute: str) -> list[NodeSample]:
    """Return one sample for all nodes of the same op and work: their mean."""
    alike: dict[tuple[object, ...], list[float]] = {}
    for node in trace.nodes:
        alike.setdefault((node.op, node.kind, features(node)), []).append(fmean(seconds[node.index]))
    return [
        NodeSample(op, kind, compute, found, fmean(times), len(times))  # type: ignore[arg-type]
        for (op, kind, found), times in alike.items()
    ]
