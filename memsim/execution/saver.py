"""When the worker saves and restores the state of its session, and how it hears that it should end."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from memsim.errors import DivergedError, WorkerError
from memsim.execution.protocol import STOP, Messages, WorkerJob
from memsim.execution.session import Session
from memsim.execution.state_file import load_state, not_finite, overflowed, save_state
from memsim.run_directory.checkpoints import state_file_name


class Saver:
    """Saves the state of ``session`` as ``job`` says, and reports each checkpoint."""

    def __init__(self, job: WorkerJob, session: Session, messages: Messages) -> None:
        self._job = job
        self._session = session
        self._messages = messages
        self._saved_step = job.first_step
        self._directory = Path(job.checkpoints)

    def restore(self) -> int:
        """Give the session its state of an earlier command, if there is one; return how many steps are done.

        Raises:
            InputError: The state's file is damaged.
        """
        if self._job.first_step:
            load_state(self._directory / state_file_name(self._job.first_step), self._session)
        return self._job.first_step

    def after(self, step: int) -> Literal["go on", "stop"]:
        """Save the state after ``step`` steps if it is time to; return whether to go on.

        Raises:
            DivergedError: The state is not finite: the checkpoint before it stays the newest.
            InputError: The disk is full or failed.
        """
        last, stop = step == self._job.steps, _asked_to_stop()
        if last or stop or step % self._job.checkpoint_every == 0:
            self._save(step)
        return "stop" if stop and not last else "go on"

    @contextmanager
    def saving_before(self, step: int) -> Iterator[None]:
        """If the loss of the step that follows ``step`` steps is not finite, save the state before it."""
        try:
            yield
        except WorkerError:
            if self._session.keeps_state_of_bad_step and step > self._saved_step:
                # Weights that are NaN already are nothing to keep: the checkpoint before them is the last good one.
                with suppress(DivergedError):
                    self._save(step)
            raise

    def require_finite(self, step: int) -> None:
        """Check all that ``step`` steps have made, before anything is done with it.

        Raises:
            DivergedError: An update overflowed.
        """
        if (name := not_finite(self._session)) is not None:
            raise overflowed(name, step)

    def _save(self, step: int) -> None:
        self._messages.send("stage", name="saving a checkpoint")
        digest = save_state(self._directory / state_file_name(step), self._session, step)
        self._messages.send("checkpoint", step=step, sha256=digest)
        self._saved_step = step


def _asked_to_stop() -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable) and os.read(sys.stdin.fileno(), 1) == STOP
