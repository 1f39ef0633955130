"""``memsim compare``: schedules side by side by what they learn and what that costs."""

from typing import Any

import click

from memsim.cli import complete
from memsim.cli.json_option import json_option
from memsim.cli.options import compute_option, device_option, model_option, number_option, path_option, updates_options
from memsim.cli.scheme_options import schemes_options
from memsim.cli.tokens import token_options
from memsim.cli.zeroth_order_options import GroupedCommand, zeroth_order_options
from memsim.compare.rates import LR_GRIDS
from memsim.schedules.names import SCHEDULE_NAMES


@click.command(name="compare", cls=GroupedCommand, context_settings={"show_default": True})
@model_option("As for `memsim run`.", default="tiny", metavar="NAME|PATH|HUB_ID")
@click.option(
    "--schedules",
    default="mebp,mezo:1000",
    metavar="LIST",
    shell_complete=complete.schedule_list,
    help=f"What to compare: NAME or NAME:STEPS, of {', '.join(SCHEDULE_NAMES)}.",
)
@number_option("--steps", 100, "Steps of a schedule that names none of its own.")
@click.option("--seeds", type=int, default=3, metavar="K", help="Runs of each schedule.")
@click.option(
    "--lr-grid",
    "grids",
    multiple=True,
    metavar="[NAME:]LIST",
    help="Learning rates to choose from, for all or for NAME, a schedule or SCHEDULE-SCHEME; repeatable.  [default: "
    + "; ".join(f"{kind}, {','.join(f'{lr:g}' for lr in grids['lora'])}" for kind, grids in LR_GRIDS.items())
    + "; schemes but lora have their own, as the record says]",
)
@click.option("--tune-steps", type=int, metavar="N", help="Steps for choosing a rate, at most.  [default: all]")
@click.option(
    "--task",
    metavar="NAME|FILE.toml",
    shell_complete=complete.tasks,
    help="Labelled examples instead of text, as for `memsim run`; docs-agreement comes with its own.",
)
@token_options
@click.option("--template/--no-template", default=True, help="Prompt as the task's template says, or only its text.")
@path_option("--data", "Text, or examples, to train on.  [default: shipped]")
@path_option("--validation-data", "What learning rates are chosen on.  [default: shipped]")
@path_option("--test-data", "What the chosen ones are scored on.  [default: shipped]")
@number_option("--evals", 10, "Evaluations along a run.")
@number_option("--eval-sequences", 32, "Sequences, or examples, of an evaluation, at most.")
@device_option()
@click.option("--budget", default="1GB", metavar="SIZE", help="Kernel limit on each run.")
@number_option("--seq-len", 128, "Tokens in a sequence.", metavar="TOKENS")
@schemes_options
@updates_options
@zeroth_order_options
@compute_option("As for `memsim run`.")
@number_option("--threads", 1, "Kernel threads; 0 takes every processor.")
@path_option("--out", "New directory.  [default: below runs]", metavar="DIR")
@path_option("--resume", "Continue there: only --schedules, --scheme, --lr-grid and --seeds may differ.", metavar="DIR")
@json_option("the record")
def command(**values: Any) -> None:
    """Compare schedules, and schemes: loss and accuracy against steps, forward passes, bytes read and seconds.

    Every figure is of a real, capped run, but for the seconds on --device, which are simulated. A learning rate is
    chosen for each schedule and scheme on the validation text; the test text only scores the chosen one, once for each
    seed. The default texts are parts of CPython's documentation that `tiny` has never seen; --task docs-agreement makes
    its examples of them. Written: compare.json, compare.svg and the record of every run.
    """
    from memsim.cli.comparing.compare_work import command as carry_out

    carry_out(**values)
