"""Following a worker: its messages become events, steps, progress, and at last an outcome."""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from statistics import median_low
from typing import Any, BinaryIO

from memsim.cap.monitor import Monitor, describe_exit, exit_reason
from memsim.cap.open import Cap
from memsim.errors import DivergedError, WorkerError
from memsim.execution.compile_cache import NOT_COMPILED
from memsim.execution.protocol import GO, STOP, read_messages
from memsim.ir.program import Program
from memsim.planner.plan import what_takes_less
from memsim.planner.traffic import Traffic, node_traffic
from memsim.results import Evaluation, StepResult
from memsim.run_directory.events import Event, EventWriter
from memsim.run_directory.steps_file import History
from memsim.runtime.outcome import Outcome
from memsim.runtime.run_progress import NodeDone, StepDone
from memsim.units import format_bytes

DRAW_S = 0.1
"""Seconds between two calls of ``on_node``: often enough for the eye, rare enough to cost nothing."""


class NotCompiled(WorkerError):
    """The worker found a kernel that was not in the cache, and ended rather than compile it inside the cap."""


class Follow:
    """Turns the worker's messages into events, steps and an outcome."""

    def __init__(
        self,
        program: Program,
        writer: EventWriter | None,
        monitor: Monitor,
        on_node: Callable[[NodeDone], None],
        on_step: Callable[[StepDone], None],
        history: History,
        kernel_peak_bytes: Callable[[], int | None],
    ) -> None:
        self.outcome = Outcome(steps=history.steps, evals=history.evals)
        self._history = history
        self._kernel_peak_bytes = kernel_peak_bytes
        self._program = program
        self._writer = writer
        self._monitor = monitor
        self._on_node = on_node
        self._on_step = on_step
        self._drawn_s = 0.0
        self._traffic = [node_traffic(program, node) for node in program.nodes]
        self._going = self._done = False
        self._first_start_s: float | None = None
        self._elapsed_s = history.start.elapsed_s if history.start else 0.0
        self._error: str | None = None
        self._diverged = False
        self._stage = ""
        self._begin_step()

    def _begin_step(self) -> None:
        self._order = list(self._program.order(len(self.outcome.steps)))
        self._step_peak = 0
        self._step_traffic = Traffic()
        self._step_time: dict[str, float] = {}
        self._position = 0

    def messages(self, pipe: BinaryIO, worker: "subprocess.Popen[bytes]", admit: Callable[[int], None]) -> None:
        """Read until the worker closes its end."""
        for message in read_messages(pipe):
            if isinstance(message, list):
                self._node(*message)
            elif message["kind"] == "ready":
                # A first reading like any other: a peak is never below it.
                self.outcome.baseline_bytes = self.outcome.peak_footprint_bytes = message["baseline_bytes"]
                self.outcome.tracker_bytes = message["tracker_bytes"]
                admit(message["baseline_bytes"])
                self._monitor.node_done()
                self._going = True
                _tell(worker, GO)
            else:
                self._other(message)

    def ask_to_stop(self, worker: "subprocess.Popen[bytes]") -> bool:
        """Ask the worker to save its state after this step, and end; return whether it has begun."""
        if self._going:
            _tell(worker, STOP)
        return self._going

    def _other(self, message: dict[str, Any]) -> None:
        self._monitor.node_done()
        if message["kind"] == "step":
            self._step(message)
        elif message["kind"] == "eval":
            self._history.add_evaluation(Evaluation(**{key: message[key] for key in ("step", "loss", "accuracy")}))
        elif message["kind"] == "checkpoint":
            self._commit(message)
        elif message["kind"] == "stage":
            self._stage = message["name"]
        elif message["kind"] == "done":
            self._done = True
        elif message["kind"] == "stopped":
            self.outcome.reason = "interrupted"
        elif message["kind"] == "error":
            self._error, self._diverged = message["message"], bool(message.get("diverged"))

    def _node(self, index: int, start_s: float, seconds: float, footprint_bytes: int) -> None:
        self._monitor.node_done()
        node = self._program.nodes[index]
        self._stage = ""
        if self._first_start_s is None:
            self._first_start_s = start_s - self._elapsed_s
        self._position += 1
        self._elapsed_s = start_s - self._first_start_s + seconds
        self._step_peak = max(self._step_peak, footprint_bytes)
        self._step_traffic += self._traffic[index]
        self._step_time[node.op] = self._step_time.get(node.op, 0.0) + seconds
        if self._writer is not None:
            self._writer.write(self._event(index, start_s - self._first_start_s, seconds, footprint_bytes))

        if start_s - self._drawn_s > DRAW_S:
            self._drawn_s = start_s
            step, n_nodes = len(self.outcome.steps) + 1, len(self._order)
            self._on_node(NodeDone(step, self._position, n_nodes, str(node), footprint_bytes))

    def _event(self, index: int, start_s: float, seconds: float, footprint_bytes: int) -> Event:
        node = self._program.nodes[index]
        return Event(
            step=len(self.outcome.steps),
            node=index,
            op=node.op,
            block=int(node.part.removeprefix("block_")) if node.part.startswith("block_") else None,
            phase=node.phase,
            start_s=start_s,
            seconds=seconds,
            bytes=self._traffic[index].total_bytes,
            footprint_bytes=footprint_bytes or None,
        )

    def _step(self, message: dict[str, Any]) -> None:
        peak = self._step_peak or self._monitor.peak_footprint_bytes
        result = StepResult(
            loss=message["loss"],
            accuracy=message["accuracy"],
            step_s=message["seconds"],
            peak_footprint_bytes=peak,
            bytes_paged_in=self._step_traffic.paged_in_bytes,
            bytes_unpacked=self._step_traffic.unpacked_bytes,
            bytes_spilled=self._step_traffic.spilled_bytes,
            bytes_written=self._step_traffic.written_bytes,
        )
        if self._writer is not None:
            self._writer.end_step()
        self._history.add_step(result, self._step_time)
        self._begin_step()
        self.outcome.peak_footprint_bytes = max(self.outcome.peak_footprint_bytes, peak)
        highest = max(self.outcome.peak_footprint_bytes, self._monitor.peak_footprint_bytes)
        self._on_step(StepDone(len(self.outcome.steps), result, highest, tuple(message["rho"])))

    def _commit(self, message: dict[str, Any]) -> None:
        footprint = max(self.outcome.peak_footprint_bytes, self._monitor.peak_footprint_bytes)
        self._history.commit(
            message["step"],
            message["sha256"],
            self._elapsed_s,
            footprint,
            self._monitor.peak_rss_bytes,
            self._kernel_peak_bytes(),
        )

    def finish(self, returncode: int, cap: Cap, monitor: Monitor, last_line: str, decimal: bool) -> Outcome:
        """Return the outcome of a worker that has ended.

        Raises:
            NotCompiled: A kernel was not in the cache.
            DivergedError: The loss was not finite in the first step. Of a run that did any there is a record.
            WorkerError: The worker reported another error before there was any checkpoint.
        """
        outcome = self.outcome
        outcome.peak_footprint_bytes = max(outcome.peak_footprint_bytes, self._step_peak, monitor.peak_footprint_bytes)
        outcome.peak_rss_bytes = monitor.peak_rss_bytes
        self._time_steps()
        if outcome.reason == "interrupted":
            return outcome
        outcome.reason = exit_reason(returncode, cap, monitor)
        if outcome.reason == "done" and not self._done:
            outcome.reason = "error"
        if self._error is not None and outcome.reason == "error":
            if NOT_COMPILED in self._error:
                raise NotCompiled(self._error)
            if not self._history.saved_step and not (self._diverged and outcome.steps):
                raise (DivergedError if self._diverged else WorkerError)(self._error)
            outcome.message, outcome.diverged = self._error, self._diverged
        elif outcome.reason != "done":
            outcome.message = self._describe(returncode, cap.budget_bytes, last_line, decimal)
        return outcome

    def _time_steps(self) -> None:
        times = [step.step_s for step in self.outcome.steps if step.step_s is not None]
        if times:
            self.outcome.step_s = median_low(times)
            self.outcome.time_by_op_s = self._history.time_by_op_s[times.index(self.outcome.step_s)]

    def _describe(self, returncode: int, budget_bytes: int, last_line: str, decimal: bool) -> str:
        outcome = self.outcome
        where = self._where()
        peak, budget = (format_bytes(size, decimal) for size in (outcome.peak_footprint_bytes, budget_bytes))
        if outcome.reason == "killed_at_cap":
            return (
                f"killed at the cap of {budget} {where}; the highest footprint seen was {peak}. "
                f"{what_takes_less(self._program)}"
            )
        if outcome.reason == "thrashing":
            return (
                f"stopped as thrashing {where}: no node finished for 30 s while the worker re-read its weights, with a "
                f"footprint of {peak} under a cap of {budget}. Raise --budget: mapped files need room of their own"
            )
        if returncode == -signal.SIGBUS:
            last_line = "a mapped file could not be read: it was cut short, or its disk failed"
        detail = f": {last_line}" if last_line else ""
        return f"the worker ended with {describe_exit(returncode)} {where}{detail}"

    def _where(self) -> str:
        if self.outcome.baseline_bytes is None:
            return "while it loaded its libraries"
        if self._stage:
            return f"while it was {self._stage} after step {len(self.outcome.steps)}"
        position = min(self._position, len(self._order) - 1)
        index = self._order[position]
        return f"at step {len(self.outcome.steps) + 1}, node {index} ({self._program.nodes[index]})"


def _tell(worker: "subprocess.Popen[bytes]", word: bytes) -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it has died by now
        os.write(worker.stdin.fileno(), word)
