"""Any memray capture of any Python program: its memory on a device. It says nothing of the program's work."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.ir.work import Kind
from memsim.json_decode import decode
from memsim.planner.work import Work
from memsim.simulator.modes import Mode
from memsim.simulator.record import limit_result
from memsim.simulator.recordings.capture_file import read_capture
from memsim.simulator.simulate import Simulation
from memsim.simulator.trace import StepTrace, TraceNode

SCHEMA = "memsim.capture/1"
MEMORY_ONLY = (
    "memory only: a capture of any program says what it allocated, not what it computed, so there are no times"
)


@dataclass(frozen=True, slots=True)
class Moment:
    """The program's memory at one time, as memray wrote it.

    Attributes:
        seconds: Since tracking began.
        rss_bytes: Resident set on the host, interpreter included.
        heap_bytes: Allocated since tracking began and not freed; a mapping counts whole.
    """

    seconds: float
    rss_bytes: int
    heap_bytes: int


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture in short.

    Attributes:
        n_records: Allocations and frees.
        peak_bytes: High-water mark of the heap, which may lie between two moments.
        timeline: At most a few thousand moments; the one of the high-water mark is among them.
        held: The largest holders at the high-water mark: where in the program they were allocated, and bytes; largest
            first. Of several processes, at the mark of each.
        processes: How many were captured.
        most_bytes: What the heap can have been at most: of several processes, all high-water marks at once.
        unread: Captures of children that lie beside it and were not read; None where there may be such.
    """

    n_records: int
    peak_bytes: int
    timeline: tuple[Moment, ...]
    held: Mapping[str, int]
    processes: int = 1
    most_bytes: int = 0
    unread: tuple[str, ...] | None = ()

    @property
    def peak_rss_bytes(self) -> int:
        """The largest resident set that memray saw."""
        return max((moment.rss_bytes for moment in self.timeline), default=0)

    def trace(self) -> StepTrace:
        """Return a step without work, a node a moment: what the simulator judges is its memory."""
        nodes = (
            TraceNode(index, "moment", "", "", Kind.STORAGE, Work(), moment.heap_bytes)
            for index, moment in enumerate(self.timeline)
        )
        return StepTrace(tuple(nodes), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Summary:
    """What the reading process says."""

    records: int
    peak_bytes: int
    start_ms: int
    pid: int
    command_line: str
    snapshots: tuple[tuple[int], ...]
    held: tuple["_Holder", ...]


@dataclass(frozen=True, slots=True)
class _Holder:
    place: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessCapture:
    """The capture of one process.

    Attributes:
        path: Its file.
        start_ms: When tracking began, since the epoch.
        pid: Of the process.
        command_line: With which memray was started; forked children have their parent's.
        capture: What it holds, by itself.
    """

    path: Path
    start_ms: int
    pid: int
    command_line: str
    capture: Capture


def read_any_capture(path: Path) -> Capture:
    """Read a capture, untrusted, through memray's own aggregators.

    Raises:
        InputError: It is empty, cut short, no capture, or nothing was allocated.
    """
    return read_process(path).capture


def read_process(path: Path) -> ProcessCapture:
    """Read a capture with what says which process it is of.

    Raises:
        InputError: As `read_any_capture`.
    """
    (line,) = read_capture(path, "summary")
    summary = decode(_Summary, line, f"the summary of {path}")
    if not summary.records:
        raise InputError(f"{path} holds no allocation: its program ended before it allocated anything")
    held = {holder.place: holder.n_bytes for holder in summary.held}
    timeline, peak = _timeline(summary), summary.peak_bytes
    unread: tuple[str, ...] | None = captures_beside(path)
    if not unread and "--follow-fork" in summary.command_line.split():
        unread = None
    capture = Capture(summary.records, peak, timeline, held, most_bytes=peak, unread=unread)
    return ProcessCapture(path, summary.start_ms, summary.pid, summary.command_line, capture)


def captures_beside(path: Path) -> tuple[str, ...]:
    """Return the names of the captures that forked children of the process of ``path`` left: ``NAME.PID``."""
    prefix = f"{path.name}."
    names = (other.name for other in path.absolute().parent.iterdir() if other.is_file())
    return tuple(sorted(name for name in names if name.startswith(prefix) and name.removeprefix(prefix).isdecimal()))


def _timeline(summary: _Summary) -> tuple[Moment, ...]:
    """Return memray's moments; where the high-water mark lies between two, it takes the place of the highest."""
    moments = [
        Moment(max(time - summary.start_ms, 0) / 1000, rss, heap) for time, rss, heap in map(tuple, summary.snapshots)
    ]
    if not moments:
        return (Moment(0.0, 0, summary.peak_bytes),)
    highest = max(range(len(moments)), key=lambda index: moments[index].heap_bytes)
    top = moments[highest]
    moments[highest] = Moment(top.seconds, top.rss_bytes, max(top.heap_bytes, summary.peak_bytes))
    return tuple(moments)


def capture_record(capture: Capture, simulation: Simulation, mode: Mode, budget: int | None) -> dict[str, Any]:
    """Return the record of a capture on a device: plain data for ``--json``."""
    survival, run = simulation.survival[mode], simulation.nominal
    killed, warned = survival.killed_at, survival.warned_at
    return {
        "schema": SCHEMA,
        "command": "replay",
        "source": "simulated",
        "scope": MEMORY_ONLY,
        "device": simulation.device.name,
        "mode": mode,
        "budget_bytes": budget,
        "verdict": survival.verdict,
        "fits": killed is None,
        "exit_reason": "killed" if killed else "done",
        "killed_at_s": capture.timeline[killed.index].seconds if killed else None,
        "warned_at_s": capture.timeline[warned.index].seconds if warned else None,
        "margin_bytes": survival.margin_bytes,
        "peak_footprint_bytes": asdict(simulation.figures["peak_footprint_bytes"]),
        "app_baseline_bytes": asdict(simulation.figures["app_baseline_bytes"]),
        "heap_peak_bytes": capture.peak_bytes,
        "host_peak_rss_bytes": capture.peak_rss_bytes,
        "heap_most_bytes": capture.most_bytes,
        "processes": capture.processes,
        "unread_captures": None if capture.unread is None else list(capture.unread),
        "n_records": capture.n_records,
        "limits": {name: asdict(limit_result(item)) for name, item in simulation.survival.items()},
        "held_at_peak": dict(capture.held),
        "timeline": [
            {"seconds": moment.seconds, "heap_bytes": moment.heap_bytes, "footprint_bytes": node.footprint_bytes}
            for moment, node in zip(capture.timeline, run.cold.timeline, strict=True)
        ],
    }
