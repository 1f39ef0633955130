"""What ``memsim replay`` does once the options are read."""

import sys
from collections.abc import Callable
from pathlib import Path

from memsim.api.replaying import ReplayedCapture, ReplayedRun, replay
from memsim.cli.predicting.verdict import killed, summary
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.errors import LimitError
from memsim.result_file import emit_json
from memsim.results import Result
from memsim.simulator.modes import Mode
from memsim.simulator.recordings.capture import MEMORY_ONLY, Capture
from memsim.units import MIB, format_bytes, is_decimal, parse_bytes

_BARS = " ▁▂▃▄▅▆▇█"

_COLUMNS = 60


def command(
    recorded: tuple[Path, ...],
    device: str,
    budget: str | None,
    mode: Mode,
    steps: int | None,
    paging: str | None,
    json_path: str | None,
) -> None:
    """Replay what was recorded on a phone or another device: would it survive, how long is a step."""
    decimal = budget is None or is_decimal(budget)
    stage(f"reading {', '.join(map(str, recorded))}")
    replayed = replay(
        recorded,
        device=device,
        budget_bytes=parse_bytes(budget) if budget is not None else None,
        mode=mode,
        steps=steps,
        advised=None if paging is None else paging == "advised",
    )
    if json_path is not None:
        emit_json(replayed.result if isinstance(replayed, ReplayedRun) else replayed.record, json_path)
    if json_path != "-":
        if isinstance(replayed, ReplayedRun):
            say(*_run_summary(replayed, decimal))
        else:
            say(*_summary(replayed, decimal))
    if not replayed.fits:
        say(f"memsim: {_complaint(replayed, decimal)}", err=True)
        sys.exit(LimitError.exit_code)


def _run_summary(replayed: ReplayedRun, decimal: bool) -> list[str]:
    """Return a replayed run for people, line by line."""
    recording = replayed.recording
    peak = recording.nodes[recording.peak].index
    where, told = f"node {peak} ({recording.program.nodes[peak]}), as recorded", "as memray saw it; no interpreter"
    lines = summary(replayed.result, replayed.simulation, replayed.mode, decimal, where, told)
    return [*lines, f"{'recorded':<18}{_host(recording.result, recording.n_steps, decimal)}"]


def _host(run: Result, n_steps: int, decimal: bool) -> str:
    """Say what the same run took here."""
    peak, baseline = run.peak_footprint_bytes, run.baseline_footprint_bytes
    if peak is None or baseline is None:
        return f"{n_steps} steps"
    sizes = f"{format_bytes(peak, decimal)}, of which {format_bytes(baseline, decimal)} interpreter, kernels and memray"
    return f"{n_steps} steps; peak footprint on the host {sizes}"


def _complaint(replayed: ReplayedRun | ReplayedCapture, decimal: bool) -> str:
    """Say why it was killed."""
    survival = replayed.simulation.survival[replayed.mode]
    if isinstance(replayed, ReplayedRun):
        return killed(survival, replayed.held_where_killed(), replayed.result.schedule or "", decimal)
    if survival.killed_at is None:
        raise ValueError("the program survives")
    capture = replayed.capture
    over, limit = (format_bytes(n, decimal) for n in (-survival.margin_bytes, survival.limit.nominal))
    at_s = capture.timeline[survival.killed_at.index].seconds
    place = next(iter(capture.held), "nothing that memray could name")
    if capture.processes > 1:
        place = f"{place}, at that process's own peak"
    return (
        f"killed {at_s:.1f} s after tracking began; the peak is {over} over the {replayed.mode} limit of {limit}, and "
        f"its largest holder is {place}. Allocate less there, or raise the limit"
    )


def _summary(replayed: ReplayedCapture, decimal: bool) -> list[str]:
    """Return a replayed capture for people, line by line."""
    capture, simulation, mode = replayed.capture, replayed.simulation, replayed.mode
    figures, survival = simulation.figures, simulation.survival[mode]

    def size(n_bytes: float) -> str:
        return format_bytes(n_bytes, decimal)

    def sizes(name: str) -> str:
        band = figures[name]
        return f"{size(band.nominal)} ({size(band.low)} to {size(band.high)})"

    shared = ", what processes share counted in each" if capture.processes > 1 else ""
    least = (10**6 if decimal else MIB) / 20  # what is not written as 0.0
    margin = survival.margin_bytes
    spare = f"{size(abs(margin))} {'to spare' if margin >= 0 else 'too much'}"
    rows = [
        ("capture", f"{capture.n_records:,} allocations and frees in {capture.timeline[-1].seconds:.1f} s"),
        ("device", simulation.device.title),
        ("verdict", f"{survival.verdict} under {size(survival.limit.nominal)}, {mode}: {spare}"),
        ("peak footprint", sizes("peak_footprint_bytes")),
        ("  app baseline", sizes("app_baseline_bytes")),
        ("  heap", f"{size(capture.peak_bytes)} since tracking began; memray counts a mapping whole"),
        *_several(capture, size),
        ("on the host", f"{size(capture.peak_rss_bytes)} resident, interpreter included{shared}"),
        ("heap in time", _bars(capture)),
        *(("  held by", f"{size(n_bytes)}  {place}") for place, n_bytes in capture.held.items() if n_bytes >= least),
        ("scope", MEMORY_ONLY),
        *_unread(capture),
    ]
    return [f"{name:<18}{text}" for name, text in rows]


def _several(capture: Capture, size: Callable[[float], str]) -> list[tuple[str, str]]:
    """Say of several processes what is known of their sum, and what is not."""
    if capture.processes == 1:
        return []
    text = (
        f"of {capture.processes} processes at the moments that memray wrote; at most {size(capture.most_bytes)}, were "
        f"all peaks at once. What a child inherits counts in its parent; pages copied on writing are not seen"
    )
    return [("", text)]


def _unread(capture: Capture) -> list[tuple[str, str]]:
    if capture.unread is None:
        return [("not read", "captures of its forked children, if it had any: memray writes each beside it, NAME.PID")]
    if not capture.unread:
        return []
    names, more = capture.unread[:3], len(capture.unread) - 3
    text = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    return [("not read", f"{text}: captures of forked children; give them too, and all are added up")]


def _bars(capture: Capture) -> str:
    """Return the heap against time as one line of bars, each as high as its highest moment, or as the one before it."""
    end_s = max(capture.timeline[-1].seconds, 1e-9)
    highest: dict[int, int] = {}
    for moment in capture.timeline:
        column = min(int(moment.seconds / end_s * _COLUMNS), _COLUMNS - 1)
        highest[column] = max(highest.get(column, 0), moment.heap_bytes)
    columns = [0]
    for column in range(_COLUMNS):
        columns.append(highest.get(column, columns[-1]))
    top = max(max(columns), 1)
    return "".join(_BARS[-(-height * (len(_BARS) - 1) // top)] for height in columns[1:])
