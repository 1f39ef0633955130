"""``memsim check``: a configuration run again and held to what it took before."""

from pathlib import Path
from typing import Any

import click

from memsim.cli.json_option import json_option


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
def command(**values: Any) -> None:
    """Run the configuration of a baseline file again and compare footprint, traffic and time.

    Make a baseline with `memsim run --save-baseline FILE`. Planned bytes and traffic follow from the step program;
    measured peaks may also differ by what two readings differ. Exits 3 when a figure is above its limit, and names the
    values at the peak and the ops that grew.
    """
    from memsim.cli.comparing.check_work import command as carry_out

    carry_out(**values)
