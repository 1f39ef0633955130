"""What a run came to: as its worker left it, and as its caller gets it."""

from dataclasses import dataclass, field
from pathlib import Path

from memsim.results import Evaluation, ExitReason, Result, StepResult


@dataclass(slots=True)
class Outcome:
    """What is known of a worker that has ended.

    Attributes:
        reason: The record's exit reason.
        message: One line that says what ended it; empty when it is done.
        diverged: Whether that is a loss, or an update, that is not finite.
        baseline_bytes: Footprint before any weight, as the worker itself read it; None if it did not get there.
        tracker_bytes: What memray and the frames that it records hold of it.
        step_s: Median over the steps.
        time_by_op_s: Of the median step.
    """

    reason: ExitReason = "error"
    message: str = ""
    diverged: bool = False
    baseline_bytes: int | None = None
    tracker_bytes: int = 0
    peak_footprint_bytes: int = 0
    peak_rss_bytes: int = 0
    steps: list[StepResult] = field(default_factory=list)
    evals: list[Evaluation] = field(default_factory=list)
    step_s: float | None = None
    time_by_op_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished run.

    Attributes:
        result: Its record, as written to ``result.json``.
        directory: Its output directory.
        message: What ended it, in one line; empty when it is done.
        diverged: Whether that is a loss, or an update, that is not finite.
        labels: Classes of the classifier that was trained; 0 without one.
    """

    result: Result
    directory: Path
    message: str
    diverged: bool = False
    labels: int = 0
