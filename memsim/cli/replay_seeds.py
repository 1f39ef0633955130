"""``memsim replay-seeds``: the adapter of a zeroth-order run, from its seeds."""

from pathlib import Path

import click

from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.errors import InputError
from memsim.result_file import emit_json
from memsim.runtime.replay import replay_seeds


@click.command(name="replay-seeds", context_settings={"show_default": True})
@click.argument("log", type=click.Path(path_type=Path), metavar="SEEDS.JSONL")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New directory for the adapter."
)
@click.option("--model", metavar="NAME|PATH", help="The run's model, if it has moved.  [default: as the log names it]")
@click.option("--json", "json_path", metavar="PATH|-", help="Write what was done to PATH, or to stdout.")
def command(log: Path, out: Path, model: str | None, json_path: str | None) -> None:
    """Make the adapter of a zeroth-order run again, to the bit, from the seeds and projected gradients that it logged.

    A run with a zeroth-order schedule writes SEEDS.JSONL beside its adapter: some fifty bytes a step.
    No forward is run.
    """
    if json_path not in (None, "-") and not Path(str(json_path)).absolute().parent.is_dir():
        raise InputError(f"cannot write {json_path}: its directory does not exist")
    steps = replay_seeds(log, model, out, stage)
    if json_path is not None:
        emit_json({"command": "replay-seeds", "log": log.name, "steps": steps}, json_path)
    if json_path != "-":
        say(f"{out}: the adapter after {steps} steps")
