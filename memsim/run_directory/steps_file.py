"""The steps of a run as they are done, in a file that grows: what a resumed run knows of the steps before it."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from memsim.errors import InputError
from memsim.files import writing
from memsim.json_decode import decode
from memsim.json_file import json_lines
from memsim.reading import open_regular
from memsim.result_file import finite
from memsim.results import Evaluation, StepResult
from memsim.run_directory.checkpoints import DIRECTORY, Checkpoint, Checkpoints

STEPS_FILE = f"{DIRECTORY}/steps.jsonl"
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One step with its seconds by op, or one evaluation."""

    step: StepResult | None = None
    time_by_op_s: dict[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None


class History:
    """What a run has done so far, in the run directory ``out``.

    Args:
        out: The directory, locked.
        start: The checkpoint to go on from; the files that grow are cut back to it. None begins.
        logs: Paths in ``out`` of the other files that grow with the run.

    Attributes:
        steps: The steps that are done.
        evals: Their evaluations.
        time_by_op_s: Seconds by op, for each step.
        start: The checkpoint that this command went on from.
        saved_step: The step of the newest checkpoint, 0 for none.

    Raises:
        InputError: A file is damaged, or cannot be written.
    """

    def __init__(self, out: Path, start: Checkpoint | None, logs: tuple[str, ...]) -> None:
        self.steps: list[StepResult] = []
        self.evals: list[Evaluation] = []
        self.time_by_op_s: list[dict[str, float]] = []
        self.start = start
        self.saved_step = start.step if start else 0
        self._out, self._logs = out, (STEPS_FILE, *logs)
        self._checkpoints = Checkpoints(out)
        with writing(out / STEPS_FILE):
            (out / STEPS_FILE).touch()
        for name in self._logs:
            _cut(out / name, start.logs.get(name, 0) if start else 0)
        self._digest = hashlib.sha256()
        if start is not None:
            self._check(out / STEPS_FILE, start)
            self._read(out / STEPS_FILE, start.step)

    def _check(self, path: Path, start: Checkpoint) -> None:
        """Hold the file to the checksum of its checkpoint: a line may be right by itself, and not where it stands."""
        try:
            with open_regular(path) as file:
                self._digest = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        if start.steps_sha256 not in (None, self._digest.hexdigest()):
            raise InputError(
                f"{path} is damaged: it does not match the checksum in the checkpoint of step {start.step}; "
                f"put the right one back, or begin again in another directory"
            )

    def _read(self, path: Path, n_steps: int) -> None:
        for where, data in json_lines(path, _MAX_LINE_BYTES, "a step"):
            line = decode(_Line, data, where)
            if line.step is not None:
                self.steps.append(line.step)
                self.time_by_op_s.append(line.time_by_op_s)
            if line.evaluation is not None:
                self.evals.append(line.evaluation)
        if len(self.steps) != n_steps:
            raise InputError(f"{path} holds {len(self.steps)} steps, but the checkpoint is of step {n_steps}")

    def add_step(self, step: StepResult, time_by_op_s: dict[str, float]) -> None:
        """Append one step.

        Raises:
            InputError: The disk is full or failed.
        """
        self.steps.append(step)
        self.time_by_op_s.append(time_by_op_s)
        self._append(_Line(step=step, time_by_op_s=time_by_op_s))

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Append one evaluation.

        Raises:
            InputError: The disk is full or failed.
        """
        self.evals.append(evaluation)
        self._append(_Line(evaluation=evaluation))

    def _append(self, line: _Line) -> None:
        path = self._out / STEPS_FILE
        with writing(path), path.open("ab") as file:
            data = json.dumps(finite(asdict(line)), allow_nan=False).encode() + b"\n"
            file.write(data)
            self._digest.update(data)

    def commit(
        self, step: int, sha256: str, elapsed_s: float, footprint_bytes: int, rss_bytes: int, kernel_bytes: int | None
    ) -> None:
        """Make the checkpoint count whose state the worker has just written.

        Args:
            step: Steps that are done.
            sha256: Of the state.
            elapsed_s: Since the first node, pauses between two commands left out.
            footprint_bytes: The highest footprint of this command, as are the two that follow.
            rss_bytes: Resident set.
            kernel_bytes: The kernel's own.

        Raises:
            InputError: The directory cannot be written, or the disk is full.
        """
        try:
            n_bytes = self._checkpoints.state_path(step).stat().st_size
            sizes = {name: (self._out / name).stat().st_size for name in self._logs if (self._out / name).exists()}
        except OSError as error:
            raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
        start = self.start
        self._checkpoints.commit(
            Checkpoint(
                step=step,
                n_bytes=n_bytes,
                sha256=sha256,
                logs=sizes,
                elapsed_s=elapsed_s,
                peak_footprint_bytes=max(footprint_bytes, start.peak_footprint_bytes if start else 0),
                peak_rss_bytes=max(rss_bytes, start.peak_rss_bytes if start else 0),
                steps_sha256=self._digest.hexdigest(),
                kernel_peak_bytes=highest(kernel_bytes, start.kernel_peak_bytes if start else None),
            )
        )
        self.saved_step = step


def highest(one: int | None, other: int | None) -> int | None:
    """Return the larger of two figures, either of which may be unknown."""
    return max((figure for figure in (one, other) if figure is not None), default=None)


def _cut(path: Path, n_bytes: int) -> None:
    """Cut a file that grows back to ``n_bytes``; where it is missing, or has less, nothing is made up."""
    with writing(path):
        if path.exists() and path.stat().st_size > n_bytes:
            os.truncate(path, n_bytes)
