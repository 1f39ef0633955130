"""A recorded run, read back: what every node held, allocated and freed, from the capture; its work from the program.

A run's directory holds ``memray.bin`` (the capture), ``program.jsonl`` (what was executed), ``events.jsonl`` (when) and
``result.json``. The memory of a recording comes from the capture alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.file_names import CAPTURE_FILE, PROGRAM_FILE, RESULT_FILE
from memsim.ir.program import Program
from memsim.ir.serialize import load_program
from memsim.planner.traffic import Traffic, node_traffic
from memsim.planner.work import Work, node_work
from memsim.result_file import read_result
from memsim.results import Result
from memsim.simulator.recordings.capture_file import read_capture
from memsim.simulator.trace import StepTrace, trace_step

Held = Mapping[str, int]
"""Bytes of each live allocation, by the value it was made for."""


@dataclass(frozen=True, slots=True)
class RecordedNode:
    """One execution of a node, as the capture has it.

    Attributes:
        step: From 0.
        index: Its position in the program.
        live_bytes: Held while it ran, by the process's values; weights, which are mapped files, are not in it.
        allocated: Values that it allocated, with their bytes.
        freed: Values that were freed after it.
    """

    step: int
    index: int
    live_bytes: int
    allocated: tuple[tuple[str, int], ...]
    freed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run.

    Attributes:
        result: The run's own record.
        n_steps: Whole steps in the capture.
        nodes: Of the step with the highest peak, the first of them.
        before: What was held when that step began.
        work: Of each of ``nodes``: FLOPs, weights unpacked, bytes through memory.
        traffic: Of each of ``nodes``: bytes paged in, unpacked, spilled, written.
    """

    directory: Path
    result: Result
    program: Program
    n_steps: int
    nodes: tuple[RecordedNode, ...]
    before: Held
    work: tuple[Work, ...]
    traffic: tuple[Traffic, ...]

    @property
    def peak(self) -> int:
        """The position in ``nodes`` at which most is held."""
        return max(range(len(self.nodes)), key=lambda position: self.nodes[position].live_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most that was held."""
        return self.nodes[self.peak].live_bytes

    def held_at(self, position: int) -> tuple[tuple[str, int], ...]:
        """Return what was held during ``nodes[position]``, largest first."""
        held = dict(self.before)
        for node in self.nodes[:position]:
            held.update(node.allocated)
            for name in node.freed:
                held.pop(name, None)
        held.update(self.nodes[position].allocated)
        return tuple(sorted(held.items(), key=lambda item: (-item[1], item[0])))

    def trace(self) -> StepTrace:
        """Return what the simulator walks."""
        return trace_step(self.program, (node.live_bytes for node in self.nodes), sum(self.before.values()))


def read_recording(directory: Path) -> Recording:
    """Read the directory of a recorded run, untrusted.

    Raises:
        InputError: A file is missing or damaged, the capture is of another run, or no whole step is in it.
    """
    capture = directory / CAPTURE_FILE
    if not capture.is_file():
        raise InputError(f"{directory} has no {CAPTURE_FILE}, so nothing was recorded; run it again with --record")
    program = load_program(directory / PROGRAM_FILE).program
    result = read_result(directory / RESULT_FILE)
    n_nodes, n_steps = sum(1 for _ in program.order()), 0
    step: list[RecordedNode] = []
    best: tuple[RecordedNode, ...] = ()
    held: dict[str, int] = {}
    before: dict[str, int] = {}
    start: dict[str, int] = {}
    for node in recorded_nodes(capture, program):
        if node.step < 0 or not step:
            start = dict(held)
        held.update(node.allocated)
        for name in node.freed:
            held.pop(name, None)
        if node.step < 0:
            continue
        step.append(node)
        if len(step) == n_nodes:
            n_steps += 1
            if not best or _peak(step) > _peak(best):
                best, before = tuple(step), start
            step = []
    if not step and not best:
        raise InputError(f"{capture} is not of a run with --record; `memsim replay {capture}` judges its memory alone")
    if not best:
        raise InputError(f"{capture} holds no whole step: its run ended in the first; give it a larger --budget")
    executed = [program.nodes[node.index] for node in best]
    return Recording(
        directory=directory,
        result=result,
        program=program,
        n_steps=n_steps,
        nodes=best,
        before=before,
        work=tuple(node_work(program, node) for node in executed),
        traffic=tuple(node_traffic(program, node) for node in executed),
    )


def _peak(nodes: list[RecordedNode] | tuple[RecordedNode, ...]) -> int:
    return max(node.live_bytes for node in nodes)


def recorded_nodes(capture: Path, program: Program) -> Iterator[RecordedNode]:
    """Yield every execution of a node of ``program`` that ``capture`` holds, in order.

    The first one, of step -1 and index -1, is what was held before the first node.

    Raises:
        InputError: The capture cannot be read, is no recording, or one of another program.
    """
    lines = read_capture(capture, "nodes")
    live_bytes = 0
    live: dict[str, int] = {}
    expected = _executions(program)
    for number, line in enumerate(lines):
        index, allocated, freed = _line(line, capture)
        step, due = next(expected, (-1, -1)) if number else (-1, -1)
        if index != due:
            raise InputError(f"{capture} is not a recording of {PROGRAM_FILE}: node {index} runs where {due} should")
        for name, n_bytes in allocated:
            if number and name not in program.values:
                raise InputError(f"{capture} is not a recording of {PROGRAM_FILE}, which has no value {name[:80]!r}")
            live[name] = n_bytes
            live_bytes += n_bytes
        yield RecordedNode(step, index, live_bytes, allocated, freed)
        live_bytes -= sum(live.pop(name, 0) for name in freed)


def _executions(program: Program) -> Iterator[tuple[int, int]]:
    """Yield (step, node) without end; nothing of a program in which no node has its turn."""
    step = -1
    order = list(program.order())
    for position, index in cycle(enumerate(order)):
        step += position == 0
        yield step, index


def _line(line: Any, capture: Path) -> tuple[int, tuple[tuple[str, int], ...], tuple[str, ...]]:
    try:
        index, allocated, freed = line
        return int(index), tuple((str(name), int(n_bytes)) for name, n_bytes in allocated), tuple(map(str, freed))
    except (TypeError, ValueError) as error:
        raise InputError(f"{capture} cannot be read as a recording: {error}") from error
