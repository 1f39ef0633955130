"""``memsim replay-seeds``: the adapter of a zeroth-order run, from its seeds."""

from pathlib import Path

import click

from memsim.cli.json_option import json_option
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.result_file import emit_json
from memsim.runtime.replay_seeds import replay_seeds


@click.command(name="replay-seeds", context_settings={"show_default": True})
@click.argument("log", type=click.Path(path_type=Path), metavar="SEEDS.JSONL")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New directory for the adapter."
)
@click.option("--model", metavar="NAME|PATH", help="The run's model, if it has moved.  [default: as the log names it]")
@json_option("what was done")
def command(log: Path, out: Path, model: str | None, json_path: str | None) -> None:
    """Make the adapter of a zeroth-order run again, to the bit, from the seeds and projected gradients that it logged.

    A run with a zeroth-order schedule writes SEEDS.JSONL beside its adapter: some fifty bytes a step.
    No forward is run.
    """
    steps = replay_seeds(log, model, out, stage)
    if json_path is not None:
        emit_json({"command": "replay-seeds", "log": log.name, "steps": steps}, json_path)
    if json_path != "-":
        say(f"{out}: the adapter after {steps} steps")
