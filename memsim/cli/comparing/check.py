"""``memsim check``: a configuration run again and held to what it took before."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from memsim.cli.json_option import json_option
from memsim.cli.say import say
from memsim.regression.baseline import read_baseline, write_baseline
from memsim.regression.check import Check, check
from memsim.regression.describe import table, what_grew
from memsim.result_file import emit_json
from memsim.units import parse_share

_LIMIT_BROKEN = 3


@click.command(name="check", context_settings={"show_default": True})
@click.option(
    "--baseline",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `memsim run --save-baseline` stored.",
)
@click.option("--tolerance", default="2%", metavar="SHARE", help="Growth in bytes that passes, relative.")
@click.option(
    "--time-tolerance",
    default="50%",
    metavar="SHARE",
    help="Growth in step time that passes, relative; time is taken in what the measured roof does meanwhile.",
)
@click.option("--update", is_flag=True, help="Store what was measured as the new baseline, and pass.")
@json_option("the comparison")
def command(path: Path, tolerance: str, time_tolerance: str, update: bool, json_path: str | None) -> None:
    """Run the configuration of a baseline file again and compare footprint, traffic and time.

    Make a baseline with `memsim run --save-baseline FILE`. Planned bytes and traffic follow from the step program;
    measured peaks may also differ by what two readings differ. Exits 3 when a figure is above its limit, and names the
    values at the peak and the ops that grew.
    """
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
