"""What is kept of a point: how it ended, and the figures of its record."""

import json
import shlex
from dataclasses import dataclass
from typing import Literal

from memsim.errors import InputError, LimitError
from memsim.result_file import from_json
from memsim.results import Result
from memsim.sweep.execute import Done
from memsim.sweep.grid import Point

Status = Literal["done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A finished point; None is what was not asked for, or what there is no figure of.

    Attributes:
        key: Of the point.
        settings: What all points of its grid share, as JSON.
        command: Its command line.
        status: ``done`` if there is an answer, which may be that it does not fit; else ``failed``.
        error: What it had to say, in one line.
        fits: Whether the budget, or the device, holds it.
        verdict: How the run ended, or would end.
        peak_footprint_bytes: Measured, simulated or planned.
        peak_working_set_bytes: The same without interpreter and libraries, or the app itself.
        step_s: Median of the steps; of a plan the predicted seconds.
        seconds: What the point itself took, start-up included.
        record: Its record, as JSON.
    """

    key: str
    mode: str
    model: str | None
    seq_len: int | None
    lora_rank: int | None
    schedule: str | None
    budget_bytes: int | None
    device: str | None
    settings: str
    command: str
    status: Status
    error: str | None
    fits: bool | None
    verdict: str | None
    peak_footprint_bytes: int | None
    peak_working_set_bytes: int | None
    step_s: float | None
    seconds: float
    record: str | None


def row_of(point: Point, done: Done) -> Row:
    """Return what to keep of a point that was executed."""
    record, error = _record(done)
    limit = done.exit_code == LimitError.exit_code
    answered = limit or (done.exit_code == 0 and record is not None)
    footprint, working_set, step_s = _figures(record) if record else (None, None, None)
    axes = dict(point.axes) | {"budget_bytes": point.budget_bytes}
    return Row(
        key=point.key,
        mode=point.mode,
        **{name: axes.get(name) for name in ("model", "seq_len", "lora_rank", "schedule", "budget_bytes", "device")},  # type: ignore[arg-type]
        settings=json.dumps(dict(point.settings)),
        command=shlex.join(["memsim", *point.arguments]),
        status="done" if answered else "failed",
        error=error,
        fits=False if limit else record.fits if record else None,
        verdict=(record.exit_reason if record else None) or ("refused" if limit else None),
        peak_footprint_bytes=footprint,
        peak_working_set_bytes=working_set,
        step_s=step_s,
        seconds=done.seconds,
        record=done.output.decode() if record else None,
    )


def _figures(record: Result) -> tuple[int | None, int | None, float | None]:
    """Return footprint and working set at the peak, and seconds of a step."""
    if record.source == "planned":
        return record.planned_footprint_bytes, record.planned_peak_bytes, record.planned_step_s
    return record.peak_footprint_bytes, record.peak_working_set_bytes, record.step_s


def _record(done: Done) -> tuple[Result | None, str | None]:
    """Return the record of a point, if it has one, and what went wrong."""
    if not done.output:
        return None, done.message or "it left no record"
    try:
        return from_json(done.output), done.message or None
    except InputError as error:
        return None, done.message or str(error)
