"""The peak of this process and its descendants between two moments, measured by a process beside it."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from memsim.cap.child import child_command, start_child
from memsim.errors import WorkerError


@dataclass(frozen=True, slots=True)
class Peak:
    """What was taken between ``begin`` and ``end``.

    Attributes:
        peak_bytes: The peak, with what the kernel's marks say of the time between two samples.
        sampled_bytes: The highest sample.
    """

    peak_bytes: int
    sampled_bytes: int


class PeakWatch:
    """A context manager: ``begin`` takes what is held then as the zero, ``end`` answers.

    It serves the process that made it: a fork of that process may not ask.

    Attributes:
        pid: The process that made it, which is watched.
        marks: Whether the kernel's high-water mark could be reset at the last ``begin``.
    """

    def __init__(self) -> None:
        """Start the watching process.

        Raises:
            WorkerError: This is not Linux, or it cannot be started.
        """
        if sys.platform != "linux":
            raise WorkerError(f"footprints are measured on Linux, not on {sys.platform}")
        self.pid = os.getpid()
        self.marks = True
        try:
            self._process = start_child(
                child_command("memsim.cap.watch_process", self.pid),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the tests, not for what measures them
            )
        except OSError as error:
            raise WorkerError(f"cannot start the process that watches footprints: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() == self.pid:
            self._process.kill()
            self._process.communicate()

    def begin(self) -> None:
        """Take what is held now as the zero.

        Raises:
            WorkerError: The watching process ended, or cannot measure.
        """
        self.marks = bool(self._ask("begin")["marks"])

    def end(self) -> Peak:
        """Return the peak since ``begin``; until the next ``begin``, nothing is measured.

        Raises:
            WorkerError: The watching process ended, or cannot measure.
        """
        return Peak(**self._ask("end"))

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        answer = b""
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise WorkerError(f"the process that watches footprints ended ({self._process.wait()}); nothing measured")
        plain: dict[str, Any] = json.loads(answer)
        if "error" in plain:
            raise WorkerError(plain["error"])
        return plain
