"""Captures of a run that followed its forks, one a process, as one program on one timeline.

What is known: each process's heap at the moments that memray wrote (10 ms apart, by the same clock), and its high-water
mark, which may lie between two. So a sum at any moment is known but for what happened in between; it is at most all
high-water marks at once. What is not: pages that a child shares with its parent and then writes to are copied, and no
tracker sees it. What a child inherits counts once, in its parent.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from memsim.errors import InputError, UsageError
from memsim.json_file import shown
from memsim.simulator.recordings.capture import Capture, Moment, ProcessCapture, captures_beside, read_process

MAX_CAPTURES = 256


def read_captures(paths: Sequence[Path]) -> Capture:
    """Read captures of one run, untrusted.

    Raises:
        UsageError: Too many.
        InputError: One cannot be read, is given twice, or is of another run.
    """
    if len(paths) > MAX_CAPTURES:
        raise UsageError(f"{len(paths)} captures are more than the {MAX_CAPTURES} that are read at once")
    processes = sorted(map(read_process, paths), key=lambda process: process.start_ms)
    if len(processes) == 1:
        return processes[0].capture
    first = processes[0]
    for process in processes[1:]:
        if process.command_line != first.command_line:
            command = shown(process.command_line[:200])
            raise InputError(f"{process.path} is not of the run of {first.path}: it was started as {command}")
    by_pid = sorted(processes, key=lambda process: process.pid)
    for one, other in pairwise(by_pid):
        if one.pid == other.pid:
            raise InputError(f"{one.path} and {other.path} are of the same process, {one.pid}; give each capture once")
    timeline = _together(processes)
    given = {path.absolute() for path in paths}
    beside = {path.absolute().parent / name for path in paths for name in captures_beside(path)}
    held = {f"{place}, process {p.pid}": n_bytes for p in processes for place, n_bytes in p.capture.held.items()}
    return Capture(
        n_records=sum(process.capture.n_records for process in processes),
        peak_bytes=max(moment.heap_bytes for moment in timeline),
        timeline=timeline,
        held=dict(sorted(held.items(), key=lambda item: -item[1])),
        processes=len(processes),
        most_bytes=sum(process.capture.peak_bytes for process in processes),
        unread=tuple(sorted(path.name for path in beside - given)),
    )


def _together(processes: Sequence[ProcessCapture]) -> tuple[Moment, ...]:
    """Return the sums at each moment of any process; one holds what it last held, and then nothing."""
    changes: list[tuple[float, int, Moment | None]] = []
    for number, process in enumerate(processes):
        offset_s = (process.start_ms - processes[0].start_ms) / 1000
        moments = process.capture.timeline
        changes += [(offset_s + moment.seconds, number, moment) for moment in moments]
        changes.append((offset_s + moments[-1].seconds, number, None))
    # At the same time a process holds something before it ends: sorting is stable.
    changes.sort(key=lambda change: change[0])
    now: dict[int, Moment] = {}
    found: list[Moment] = []
    for seconds, number, moment in changes:
        if moment is None:
            del now[number]
        else:
            now[number] = moment
        rss, heap = (sum(getattr(item, name) for item in now.values()) for name in ("rss_bytes", "heap_bytes"))
        found.append(Moment(seconds, rss, heap))
    return tuple(found)
