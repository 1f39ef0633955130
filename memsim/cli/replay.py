"""``memsim replay``: a recorded run, or any memray capture, on a device that is not here."""

import sys
from pathlib import Path

import click

from memsim.api.replaying import ReplayedCapture, ReplayedRun, replay
from memsim.cli import complete
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.cli.verdict import killed, summary
from memsim.errors import LimitError
from memsim.result_file import emit_json
from memsim.results import Result
from memsim.simulator.capture import MEMORY_ONLY, Capture
from memsim.simulator.simulate import MODES, Mode
from memsim.units import format_bytes, is_decimal, parse_bytes

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 60


@click.command(name="replay", context_settings={"show_default": True})
@click.argument("recorded", type=click.Path(path_type=Path), metavar="RUN_DIR|CAPTURE")
@click.option(
    "--device",
    default="iphone-15-pro-max",
    metavar="NAME|FILE",
    shell_complete=complete.devices,
    help="See `memsim devices`.",
)
@click.option("--budget", metavar="SIZE", help="A limit below the device's: 1GB, 512MiB.  [default: the device's]")
@click.option("--mode", type=click.Choice(list(MODES)), default="foreground", help="How the app runs: its limit.")
@click.option(
    "--steps",
    type=int,
    default=20,
    metavar="N",
    help="Optimizer steps in a row, of a recorded run: the device gets hot.",
)
@click.option(
    "--paging",
    type=click.Choice(["advised", "faults"]),
    default="advised",
    help="Whether a page-in of a recorded run asks for its file in advance or faults its way through.",
)
@click.option("--json", "json_path", metavar="PATH|-", help="Write the result record to PATH, or to stdout.")
def command(
    recorded: Path, device: str, budget: str | None, mode: Mode, steps: int, paging: str, json_path: str | None
) -> None:
    """Replay what was recorded on a phone or another device: would it survive, how long is a step.

    RUN_DIR is the directory of a `memsim run --record`: its memory comes from the memray capture, its work from the
    step program. CAPTURE is any memray capture of any Python program: a memory verdict and timeline, no times. Every
    figure is given with the device's numbers at their nominal and, in brackets, with all of them at their worst and
    best at once. Exit code 3: killed.
    """
    decimal = budget is None or is_decimal(budget)
    stage(f"reading {recorded}")
    replayed = replay(
        recorded,
        device=device,
        budget_bytes=parse_bytes(budget) if budget else None,
        mode=mode,
        steps=steps,
        advised=paging == "advised",
    )
    if json_path is not None:
        emit_json(replayed.result if isinstance(replayed, ReplayedRun) else replayed.record, json_path)
    if json_path != "-":
        say(*(_run_summary if isinstance(replayed, ReplayedRun) else _summary)(replayed, decimal))
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
    if isinstance(replayed, ReplayedRun) or survival.killed_at is None:
        return killed(survival, replayed.held_where_killed() if isinstance(replayed, ReplayedRun) else (), decimal)
    capture = replayed.capture
    over, limit = (format_bytes(n, decimal) for n in (-survival.margin_bytes, survival.limit.nominal))
    at_s = capture.timeline[survival.killed_at.index].seconds
    place = next(iter(capture.held), "nothing that memray could name")
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

    margin = survival.margin_bytes
    spare = f"{size(abs(margin))} {'to spare' if margin >= 0 else 'too much'}"
    rows = [
        ("capture", f"{capture.n_records:,} allocations and frees in {capture.timeline[-1].seconds:.1f} s"),
        ("device", simulation.device.title),
        ("verdict", f"{survival.verdict} under {size(survival.limit.nominal)}, {mode}: {spare}"),
        ("peak footprint", sizes("peak_footprint_bytes")),
        ("  app baseline", sizes("app_baseline_bytes")),
        ("  heap", f"{size(capture.peak_bytes)} since tracking began; memray counts a mapping whole"),
        ("on the host", f"{size(capture.peak_rss_bytes)} resident, interpreter included"),
        ("heap in time", _bars(capture)),
        *(("  held by", f"{size(n_bytes)}  {place}") for place, n_bytes in capture.held.items()),
        ("scope", MEMORY_ONLY),
    ]
    return [f"{name:<18}{text}" for name, text in rows]


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
