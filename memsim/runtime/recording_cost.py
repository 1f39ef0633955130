"""What recording a run cost: its last steps are made without the tracker, to compare with."""

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from statistics import median

from memsim.execution.protocol import WorkerJob
from memsim.results import RecordingResult, Result
from memsim.runtime.outcome import Outcome


def recorded_steps(steps: int) -> int:
    """Return how many of so many steps are recorded; the last one or two are not, to know what recording costs."""
    return steps - min(2, (steps - 1) // 2)


def with_recording(result: Result, job: WorkerJob, capture: Path, outcome: Outcome) -> Result:
    """Return ``result`` with what recording cost, if the run was recorded.

    Args:
        result: The record of the run.
        job: What the worker was told.
        capture: Where its capture is now, if it wrote one.
        outcome: How it ended.
    """
    if not job.capture:
        return result
    times = [step.step_s for step in outcome.steps if step.step_s is not None]
    recorded, unrecorded = times[1 : job.recorded_steps], times[job.recorded_steps :]
    recording = RecordingResult(
        steps=min(len(times), job.recorded_steps),
        capture_bytes=capture.stat().st_size if capture.exists() else 0,
        tracker_bytes=outcome.tracker_bytes,
        recorded_step_s=median(recorded) if recorded else None,
        unrecorded_step_s=median(unrecorded) if unrecorded else None,
    )
    versions = result.versions | {"memray": metadata.version("memray")}
    return replace(result, recording=recording, versions=versions)
