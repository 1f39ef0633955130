"""``memsim simulate``: a step program on a device that is not here."""

from typing import Any

import click

from memsim.cli.json_option import json_option
from memsim.cli.options import NO_WEIGHTS, device_option, model_option, number_option, schedule_option, updates_options
from memsim.cli.scheme_options import scheme_options_without_task
from memsim.schedules.names import SCHEDULE_NAMES
from memsim.simulator.modes import MODES


@click.command(name="simulate", context_settings={"show_default": True})
@model_option(NO_WEIGHTS)
@schedule_option(SCHEDULE_NAMES, "mebp", "What a step keeps, spills and recomputes.")
@device_option()
@click.option("--budget", metavar="SIZE", help="A limit below the device's: 1GB, 512MiB.  [default: the device's]")
@click.option("--mode", type=click.Choice(list(MODES)), default="foreground", help="How the app runs: its limit.")
@number_option("--seq-len", 256, "Tokens in a sequence.", metavar="TOKENS")
@number_option("--steps", 20, "Optimizer steps in a row: the device gets hot.")
@scheme_options_without_task
@updates_options
@click.option(
    "--paging",
    type=click.Choice(["advised", "faults"]),
    default="advised",
    help="Whether a page-in asks for its file in advance, as memsim's runtime does, or faults its way through.",
)
@json_option("the result record")
def command(**values: Any) -> None:
    """Simulate a fine-tuning run on a phone or another device: would it survive, how long is a step.

    Nothing runs: the step program is walked with the device's rates. Every figure is given with the device's numbers at
    their nominal and, in brackets, with all of them at their worst and best at once. Exit code 3: killed.
    """
    from memsim.cli.predicting.simulate_work import command as carry_out

    carry_out(**values)
