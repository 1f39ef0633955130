"""``memsim replay-seeds``: the adapter of a zeroth-order run, from its seeds."""

from pathlib import Path
from typing import Any

import click

from memsim.cli.json_option import json_option


@click.command(name="replay-seeds", context_settings={"show_default": True})
@click.argument("log", type=click.Path(path_type=Path), metavar="SEEDS.JSONL")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New directory for the adapter."
)
@click.option("--model", metavar="NAME|PATH", help="The run's model, if it has moved.  [default: as the log names it]")
@json_option("what was done")
def command(**values: Any) -> None:
    """Make the adapter of a zeroth-order run again, to the bit, from the seeds and projected gradients that it logged.

    A run with a zeroth-order schedule writes SEEDS.JSONL beside its adapter: some fifty bytes a step.
    No forward is run.
    """
    from memsim.cli.running.replay_seeds_work import command as carry_out

    carry_out(**values)
