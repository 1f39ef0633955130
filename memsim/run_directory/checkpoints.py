"""The checkpoints of a run directory: which there are, which of them is whole, and how one comes to count.

The worker writes the state (``state_file``), and the parent then writes a small record of it: with that a checkpoint
counts. The one before stays, for the day on which the newest cannot be read.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from memsim.errors import InputError
from memsim.files import sync_directory, write_text, writing
from memsim.json_decode import decode
from memsim.json_file import read_object
from memsim.reading import open_regular

SCHEMA: Final = "memsim.checkpoint/1"
DIRECTORY = "checkpoints"
N_KEPT = 2

_RECORD = re.compile(r"step-(\d{8})\.json")
_MAX_RECORD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The record of one checkpoint.

    Attributes:
        step: Steps that are done.
        sha256: Of the state's file.
        logs: Bytes of each growing file of the run, by its path in the run directory, that belong to those steps.
        steps_sha256: Of the file of steps as it was then; None in a directory that an earlier memsim wrote, which
            kept none.
        elapsed_s: Seconds from the first node to the last, pauses between two commands left out.
        peak_footprint_bytes: The highest so far, as are the other peaks.
    """

    schema: Literal["memsim.checkpoint/1"] = field(default=SCHEMA, init=False)
    step: int
    n_bytes: int
    sha256: str
    logs: dict[str, int]
    elapsed_s: float
    peak_footprint_bytes: int
    peak_rss_bytes: int
    kernel_peak_bytes: int | None
    steps_sha256: str | None = None


class Checkpoints:
    """The checkpoints of the run in directory ``out``.

    Attributes:
        directory: Where they are.
    """

    def __init__(self, out: Path) -> None:
        self.directory = out / DIRECTORY
        self._out = out

    def state_path(self, step: int) -> Path:
        """Return the file of the state after ``step`` steps."""
        return self.directory / state_file_name(step)

    def commit(self, checkpoint: Checkpoint) -> None:
        """Make a checkpoint count whose state is on disk, and remove those that are too many.

        Raises:
            InputError: The directory cannot be written, or the disk is full.
        """
        for name in checkpoint.logs:
            _sync(self._out / name)
        data = asdict(checkpoint)
        text = json.dumps({"checkpoint": data, "sha256": _digest(data)}) + "\n"
        write_text(self._record_path(checkpoint.step), text)
        sync_directory(self.directory)
        self.prune()

    def newest(self, complain: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None.

        Args:
            complain: Called with one line for each that is not.
        """
        for step in self._steps():
            try:
                return self._read(step)
            except InputError as error:
                complain(f"{error}; going back to the checkpoint before it")
        return None

    def prune(self, last: int | None = None) -> None:
        """Remove all but the newest checkpoint and the one before.

        Args:
            last: The newest that counts: what there is of later steps goes, too. None while a worker may be writing.

        Raises:
            InputError: The directory cannot be written.
        """
        steps = [step for step in self._steps() if last is None or step <= last][:N_KEPT]
        kept = {state_file_name(step).partition(".")[0] for step in steps}
        newest = state_file_name(steps[0] if steps else 0)
        try:
            for path in self.directory.glob("step-*"):
                if path.stem not in kept and (last is not None or path.name < newest):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot remove old checkpoints in {self.directory}: {error.strerror}") from error

    def _steps(self) -> list[int]:
        """Return the steps of all records, newest first."""
        matches = (_RECORD.fullmatch(path.name) for path in self.directory.glob("step-*.json"))
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def _record_path(self, step: int) -> Path:
        return self.state_path(step).with_suffix(".json")

    def _read(self, step: int) -> Checkpoint:
        """Read one record, untrusted, and check the state that it is about."""
        path, state = self._record_path(step), self.state_path(step)
        data = read_object(path, _MAX_RECORD_BYTES)
        found = decode(Checkpoint, data.get("checkpoint"), str(path))
        if data.get("sha256") != _digest(asdict(found)) or found.step != step:
            raise InputError(f"{path} is damaged: it does not match its checksum")
        try:
            with open_regular(state) as file:
                n_bytes = os.fstat(file.fileno()).st_size
                whole = n_bytes == found.n_bytes and hashlib.file_digest(file, "sha256").hexdigest() == found.sha256
        except OSError as error:
            raise InputError(f"cannot read {state}: {error.strerror or error}") from error
        if not whole:
            raise InputError(f"{state} is damaged: it does not match its checksum")
        return found


def state_file_name(step: int) -> str:
    """Return the name of the file that holds the state after ``step`` steps."""
    return f"step-{step:08d}.safetensors"


def _digest(data: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Bring a file that grows to disk."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
