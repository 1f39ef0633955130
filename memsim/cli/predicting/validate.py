"""``memsim validate``: what the simulator says against what was published, or against runs on this machine."""

from typing import Any

import click

from memsim.bench.host_runs import CALIBRATION, HELD_OUT
from memsim.cli.json_option import json_option
from memsim.cli.options import device_option, number_option
from memsim.simulator.published_figures import DEVICE


@click.command(name="validate", context_settings={"show_default": True})
@device_option("What is not fitted (heat, flash, RAM) is this device's.", default=DEVICE)
@click.option("--host", is_flag=True, help="Instead: real runs on this machine, some of which calibrate.")
@click.option(
    "--calibration",
    default=CALIBRATION,
    metavar="LIST",
    help="With --host: runs that are fitted, MODEL:SCHEDULE:TOKENS.",
)
@click.option("--held-out", default=HELD_OUT, metavar="LIST", help="With --host: runs that are only predicted.")
@number_option("--threads", 0, "With --host; 0 takes every processor.", least=0)
@json_option("everything")
def command(**values: Any) -> None:
    """Predict the published table of MeBP and MeZO, and print every error.

    Three constants are fitted, the same for all models: to all of them, and to all but the one that is predicted.

    With --host: run models, schedules and sequence lengths here, capped, and compare peak and step time with what was
    planned and simulated. Takes some ten minutes; leave the machine idle. A missed goal is printed, and exits with 0.
    """
    from memsim.cli.predicting.validate_work import command as carry_out

    carry_out(**values)
