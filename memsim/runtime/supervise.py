"""Supervising a worker: start it under the cap, follow its messages, tell how it ended."""

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from memsim.cap.child import child_command, start_child
from memsim.cap.monitor import Monitor
from memsim.cap.open import Cap
from memsim.execution.compile_cache import kernel_environment
from memsim.files import last_line, temporary_file
from memsim.ir.program import Program
from memsim.results import ExitReason
from memsim.run_directory.events import EventWriter
from memsim.run_directory.steps_file import History
from memsim.runtime.follow import Follow
from memsim.runtime.interrupt import asking_first
from memsim.runtime.outcome import Outcome
from memsim.runtime.run_progress import NodeDone, StepDone


def supervise(
    job: Path,
    cap: Cap,
    program: Program,
    events: Path | None,
    admit: Callable[[int], None],
    on_node: Callable[[NodeDone], None],
    on_step: Callable[[StepDone], None],
    history: History,
    note: Callable[[str], None],
    decimal: bool = False,
) -> Outcome:
    """Run the worker on ``job`` until it ends.

    Args:
        job: The worker's orders.
        cap: The open cap.
        program: What each step executes; the worker reports nodes by number.
        events: The event file to write; None writes none.
        admit: Called with the worker's baseline footprint before it allocates; may raise to refuse.
        on_node: Called after a node, at most ten times a second.
        on_step: Called after each step.
        history: The steps that are done, and where those of this worker go.
        note: Called with a line worth reading.
        decimal: Messages use MB instead of MiB.

    Raises:
        NotCompiled: A kernel was not in the cache.
        WorkerError: The worker reported an error of its own.
        Exception: Whatever ``admit`` raised; the worker is gone then.
    """
    read_end, write_end = os.pipe()
    command = cap.command(child_command("memsim.execution.worker", job, write_end))
    with temporary_file() as stderr, os.fdopen(read_end, "rb") as pipe, ExitStack() as files:
        writer = files.enter_context(EventWriter(events, append=True)) if events else None
        try:
            worker = start_child(
                command,
                env=kernel_environment(),
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                pass_fds=(write_end,),
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then decides
            )
        finally:
            os.close(write_end)
        with worker, Monitor(worker, cap) as monitor:
            follow = Follow(program, writer, monitor, on_node, on_step, history, cap.kernel_peak_bytes)

            def ask() -> bool:
                if follow.ask_to_stop(worker):
                    note(f"finishing step {len(history.steps) + 1} and saving it; Ctrl-C again stops at once")
                    return True
                return False

            try:
                with asking_first(ask):
                    follow.messages(pipe, worker, admit)
                    worker.wait()
            except KeyboardInterrupt:
                follow.outcome.reason = "interrupted"
            finally:
                worker.kill()
                worker.wait()
        return follow.finish(worker.returncode, cap, monitor, last_line(stderr), decimal)


def exit_code(reason: ExitReason) -> int:
    """Return the exit code of a command whose run ended for ``reason``."""
    limits: Sequence[ExitReason] = ("refused", "killed_at_cap", "thrashing")
    return 0 if reason == "done" else 3 if reason in limits else 130 if reason == "interrupted" else 1
