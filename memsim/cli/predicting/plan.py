"""``memsim plan``: the fastest schedule that fits a budget, and what else there is."""

from typing import Any

import click

from memsim.cli.json_option import file_option, json_option
from memsim.cli.options import NO_WEIGHTS, device_option, model_option, number_option, updates_options
from memsim.cli.scheme_options import scheme_options_without_task
from memsim.simulator.device_file import HOST


@click.command(name="plan", context_settings={"show_default": True})
@model_option(NO_WEIGHTS)
@number_option("--seq-len", 256, "Tokens in a sequence.", metavar="TOKENS")
@click.option("--budget", metavar="SIZE", help="Limit on the process: 1GB, 512MiB.  [default: the device's limit]")
@device_option(
    "Whose rates decide, and whose rules: `host` is this machine (`memsim devices calibrate`).", default=HOST
)
@scheme_options_without_task
@updates_options
@number_option("--threads", 0, "Kernel threads; 0 takes every processor.")
@file_option("--emit", "Write the plan for `memsim run --plan`.")
@file_option("--plot", "Draw seconds against budget as SVG.")
@json_option("the result record")
def command(**values: Any) -> None:
    """Find the fastest training step that fits a budget; nothing is run.

    Each block's residuals are kept, spilled or recomputed, the MLP runs in tiles, adapters and optimizer state are held
    or paged, as is fastest by the device's rates. Peaks are the planner's, exact. Exit code 3: nothing fits; the
    message says the smallest budget and the longest sequence that would.
    """
    from memsim.cli.predicting.plan_work import command as carry_out

    carry_out(**values)
