"""``memsim replay``: a recorded run, or any memray capture, on a device that is not here."""

from pathlib import Path
from typing import Any

import click

from memsim.cli.json_option import json_option
from memsim.cli.options import device_option
from memsim.simulator.modes import MODES, STEPS


@click.command(name="replay", context_settings={"show_default": True})
@click.argument("recorded", type=click.Path(path_type=Path), metavar="RUN_DIR|CAPTURE...", nargs=-1, required=True)
@device_option()
@click.option("--budget", metavar="SIZE", help="A limit below the device's: 1GB, 512MiB.  [default: the device's]")
@click.option("--mode", type=click.Choice(list(MODES)), default="foreground", help="How the app runs: its limit.")
@click.option(
    "--steps",
    type=int,
    metavar="N",
    help=f"Optimizer steps in a row, of a recorded run: the device gets hot.  [default: {STEPS}]",
)
@click.option(
    "--paging",
    type=click.Choice(["advised", "faults"]),
    help="Whether a page-in of a recorded run asks for its file in advance or faults its way through.  "
    "[default: advised]",
)
@json_option("the result record")
def command(**values: Any) -> None:
    """Replay what was recorded on a phone or another device: would it survive, how long is a step.

    RUN_DIR is the directory of a `memsim run --record`: its memory comes from the memray capture, its work from the
    step program. CAPTURE is any memray capture of any Python program: a memory verdict and timeline, no times; of a
    run that followed its forks, give the captures of all its processes: they are added up on one timeline. Every
    figure is given with the device's numbers at their nominal and, in brackets, with all of them at their worst and
    best at once. Exit code 3: killed.
    """
    from memsim.cli.predicting.replay_work import command as carry_out

    carry_out(**values)
