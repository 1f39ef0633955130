"""What ``memsim replay-seeds`` does once the options are read."""

from pathlib import Path

from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.result_file import emit_json
from memsim.runtime.replay_seeds import replay_seeds


def command(log: Path, out: Path, model: str | None, json_path: str | None) -> None:
    """Make the adapter of a zeroth-order run again, to the bit, from its log."""
    steps = replay_seeds(log, model, out, stage)
    if json_path is not None:
        emit_json({"command": "replay-seeds", "log": log.name, "steps": steps}, json_path)
    if json_path != "-":
        say(f"{out}: the adapter after {steps} steps")
