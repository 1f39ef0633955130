"""``memsim report``: runs as one HTML file, or as a trace for Perfetto."""

from pathlib import Path
from typing import Any

import click

from memsim.cli.json_option import json_option
from memsim.cli.options import devices_option, path_option


@click.command(name="report", context_settings={"show_default": True})
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="The HTML file to write.")
@path_option(
    "--perfetto",
    "Write a trace for ui.perfetto.dev (Chrome's JSON format): every op, footprint, mapped weights, page-ins.",
)
@devices_option("Simulate the runs there too; may be repeated.")
@path_option("--decompression", "Include the curves of `memsim profile decompression --json FILE`.")
@json_option("what was written, and verdicts")
def command(**values: Any) -> None:
    """Show runs side by side in one HTML file that needs no network: give directories that `memsim run` wrote.

    Memory over a step with its cap and what held the peak, time by op and by block, loss, and, with --device, whether
    the same step programs would survive elsewhere. Without -o and --perfetto it writes report.html here.
    """
    from memsim.cli.comparing.report_work import command as carry_out

    carry_out(**values)
