"""``events.jsonl``: one line for every node that a run executed, in order."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from memsim.errors import InputError
from memsim.files import writing
from memsim.json_decode import decode
from memsim.json_file import json_lines

MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One executed node.

    Attributes:
        step: Training step, from 0.
        node: Index of the node in the step program.
        op: Name of its op (``attention_backward``).
        block: Transformer block, or None outside the blocks.
        phase: Part of the step (``forward``, ``recompute``, ``backward``, ``update``).
        start_s: Since the run's first event.
        seconds: How long the node took.
        bytes: What the node moved or unpacked, 0 for pure arithmetic.
        footprint_bytes: Of the worker, read right after the node; None when nothing was read.
    """

    step: int
    node: int
    op: str
    block: int | None
    phase: str
    start_s: float
    seconds: float
    bytes: int
    footprint_bytes: int | None


_FIELDS = tuple(spec.name for spec in fields(Event))
# One encoder for all lines: json.dumps builds a new one each time it is told anything but its defaults.
_ENCODER = json.JSONEncoder(allow_nan=False)


class EventWriter:
    """Appends events to a file, whole lines only: buffered in memory, written at the end of each step.

    The file grows in place, unlike every other that memsim writes, so that a killed run leaves the steps it finished.

    Example:
        with EventWriter(path) as events:
            events.write(event)
            events.end_step()
    """

    def __init__(self, path: Path, append: bool = False) -> None:
        """Create ``path``, or go on with it if told to ``append``.

        Raises:
            InputError: It exists already, or cannot be created.
        """
        self._path = path
        self._lines: list[bytes] = []
        try:
            self._file: BinaryIO = path.open("ab" if append else "xb", buffering=0)
        except OSError as error:
            raise InputError(f"cannot create {path}: {error.strerror or error}") from error

    def write(self, event: Event) -> None:
        """Add one event to the step's buffer."""
        line = _ENCODER.encode({name: getattr(event, name) for name in _FIELDS})
        self._lines.append(line.encode() + b"\n")

    def end_step(self) -> None:
        """Write the buffered events.

        Raises:
            InputError: The disk is full or failed.
        """
        data = memoryview(b"".join(self._lines))
        self._lines.clear()
        with writing(self._path):
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """Write what is buffered and close the file; the step that a dead worker left unfinished is kept too."""
        try:
            self.end_step()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a file, untrusted, one line in memory at a time.

    Raises:
        InputError: It cannot be read, or a line is too long, cut short (its run was killed) or not an event; the
            message has the line number. The events before it have been yielded by then.
    """
    for where, data in json_lines(path, MAX_LINE_BYTES, "an event"):
        yield decode(Event, data, where)
