"""What ``memsim check`` does once the options are read."""

import sys
from dataclasses import asdict
from pathlib import Path

from memsim.cli.say import say
from memsim.regression.baseline import read_baseline, write_baseline
from memsim.regression.check import Check, check
from memsim.regression.describe import table, what_grew
from memsim.result_file import emit_json
from memsim.units import parse_share

_LIMIT_BROKEN = 3


def command(path: Path, tolerance: str, time_tolerance: str, update: bool, json_path: str | None) -> None:
    """Run the configuration of a baseline file again and compare footprint, traffic and time."""
    share, time_share = parse_share(tolerance), parse_share(time_tolerance)
    baseline = read_baseline(path)
    found = check(baseline, share, time_share, lambda text: say(f"{text} ...", err=True))
    if update:
        write_baseline(path, found.measured)
    if json_path is not None:
        emit_json(_plain(found), json_path)
    if json_path != "-":
        say(*_lines(found, path, update))
    if found.failed and not update:
        sys.exit(_LIMIT_BROKEN)


def _plain(found: Check) -> dict[str, object]:
    return {
        "passed": not found.failed,
        "figures": [asdict(figure) | {"failed": figure.failed} for figure in found.figures],
        "values": [asdict(row) for row in found.values],
        "longer": [asdict(row) for row in found.longer],
        "ops": [asdict(row) for row in found.ops],
        "result": asdict(found.measured.result),
    }


def _lines(found: Check, path: Path, updated: bool) -> list[str]:
    lines = table(found.figures)
    if found.failed:
        lines += what_grew(found)
    if updated:
        return [*lines, f"{path}: updated"]
    names = ", ".join(figure.name for figure in found.failed)
    return [*lines, f"failed: {names}; if this is meant, add --update" if names else "passed"]
