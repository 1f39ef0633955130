"""What ``memsim report`` does once the options are read."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.errors import UsageError
from memsim.files import write_text
from memsim.reports.html import report
from memsim.reports.perfetto import write_trace
from memsim.reports.run_files import open_run
from memsim.reports.shares_file import read_shares
from memsim.reports.verdicts import Verdict, verdicts
from memsim.result_file import emit_json
from memsim.simulator.device_file import find_device


def command(
    runs: tuple[Path, ...],
    out: Path | None,
    perfetto: Path | None,
    devices: tuple[str, ...],
    decompression: Path | None,
    json_path: str | None,
) -> None:
    """Show runs side by side in one HTML file that needs no network: give directories that `memsim run` wrote."""
    if decompression is not None and out is None and perfetto is not None:
        raise UsageError("--decompression belongs into the HTML file; name it with -o")
    page = out or (None if perfetto else Path("report.html"))
    stage(f"reading {len(runs)} run{'s' if len(runs) > 1 else ''}")
    opened = [open_run(directory) for directory in runs]
    found = verdicts(opened, [find_device(name) for name in devices])
    shares = read_shares(decompression) if decompression else ()
    if page is not None:
        write_text(page, report(opened, found, shares))
    if perfetto is not None:
        write_trace(perfetto, opened, found)
    written = [str(path) for path in (page, perfetto) if path is not None]
    if json_path is not None:
        plain = {"command": "report", "files": written, "runs": [run.name for run in opened]}
        emit_json(plain | {"devices": [_plain(one) for one in found]}, json_path)
    if json_path != "-":
        for path in written:
            say(path)


def _plain(verdict: Verdict) -> dict[str, Any]:
    simulation = verdict.simulation
    return {
        "run": verdict.run.name,
        "device": simulation.device.name,
        "verdicts": {mode: survival.verdict for mode, survival in simulation.survival.items()},
        "figures": {name: asdict(band) for name, band in simulation.figures.items()},
    }
