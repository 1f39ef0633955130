"""``memsim profile``: what decompression costs, what each layer costs, what holds memory."""

from pathlib import Path
from typing import Any

import click

from memsim.cli.json_option import file_option, json_option
from memsim.cli.measuring.profile_decompression import decompression
from memsim.cli.options import compute_option, model_option, number_option, schedule_option
from memsim.cli.scheme_options import scheme_options_without_task
from memsim.models.presets import PRESETS
from memsim.schedules.choices import SCHEDULES
from memsim.schedules.optimizers import STATE_PER_PARAMETER

_MODEL = model_option(f"A preset ({', '.join(PRESETS)}) or DIR.")


_SCHEDULE = schedule_option(list(SCHEDULES), "mebp", "What a step keeps and recomputes.")


_SEQ_LEN = number_option("--seq-len", 256, "Tokens in a sequence.", least=1, metavar="TOKENS")


_THREADS = number_option("--threads", 0, "0 takes every processor.", least=0)


_PLOT = file_option("--plot", "Draw it as SVG into FILE.")


_JSON = json_option("the rows")


_RUN = click.argument("run", required=False, metavar="[RUN_DIR]", type=click.Path(path_type=Path))


@click.group(name="profile")
def command() -> None:
    """Show where time and memory of a step go: in decompression, by layer, by value."""


command.add_command(decompression)


@command.command(name="layers", context_settings={"show_default": True})
@_RUN
@_MODEL
@_SCHEDULE
@_SEQ_LEN
@number_option("--steps", 3, "Steps to run; the median one is shown.", least=1)
@click.option("--budget", default="1GB", metavar="SIZE", help="Cap of the run.")
@compute_option("Compute path.")
@_THREADS
@_PLOT
@_JSON
def layers(**values: Any) -> None:
    """Show time by phase and the highest footprint of embedding, every block and head.

    Of a run that `memsim run` left in RUN_DIR; without it, of a capped run made now with the other options.
    """
    from memsim.cli.measuring.profile_work import layers as carry_out

    carry_out(**values)


@command.command(name="memory", context_settings={"show_default": True})
@_RUN
@_MODEL
@_SCHEDULE
@_SEQ_LEN
@scheme_options_without_task
@click.option(
    "--optimizer", type=click.Choice(list(STATE_PER_PARAMETER)), default="adamw", help="What updates what is trained."
)
@click.option("--accumulate", type=int, default=1, metavar="N", help="Sequences whose gradients are summed in a step.")
@_THREADS
@_PLOT
@_JSON
def memory(**values: Any) -> None:
    """Show memory over a step and the values that are alive at its peak.

    With RUN_DIR, the planned and the measured memory of that run; without it, nothing runs and the plan of what the
    other options say is shown.
    """
    from memsim.cli.measuring.profile_work import memory as carry_out

    carry_out(**values)
