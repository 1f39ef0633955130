"""``memsim run``: one fine-tuning run in a capped process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from memsim.cap.open import ENFORCEMENTS
from memsim.cli import complete
from memsim.cli.json_option import file_option, json_option
from memsim.cli.scheme_options import scheme_options
from memsim.cli.tokens import token_options
from memsim.cli.zeroth_order_options import GroupedCommand, zeroth_order_options
from memsim.models.presets import PRESETS
from memsim.runtime.settings import CHANGE_BITS, KEEP_BITS
from memsim.schedules.names import AUTO, SCHEDULE_NAMES
from memsim.schedules.optimizers import STATE_PER_PARAMETER
from memsim.tasks.task_file import built_in

_OPTIONS = {"budget_bytes": "--budget", "cold": "--page-cache", "decimal": ""}


def _options(settings: Sequence[str]) -> list[str]:
    """Return the options that give these settings."""
    options = (_OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in settings)
    return [option for option in options if option]


@click.command(name="run", cls=GroupedCommand, context_settings={"show_default": True})
@click.option(
    "--budget", metavar="SIZE", help="Kernel limit on the whole process: 1GB, 512MiB. Required, unless --plan has one."
)
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run a plan of `memsim plan --emit`; it decides model, schedule and all that it was made for.",
)
@click.option(
    "--model",
    default="qwen2.5-0.5b",
    metavar="NAME|PATH|HUB_ID",
    shell_complete=complete.models,
    help=f"A preset ({', '.join(PRESETS)}), a pack, a checkpoint (Hugging Face, MLX, GGUF), or owner/model on the hub.",
)
@click.option(
    "--schedule",
    type=click.Choice([*SCHEDULE_NAMES, AUTO]),
    default="mebp",
    help="What a step keeps, spills and recomputes; auto: the fastest that fits the budget.",
)
@click.option("--seq-len", type=int, default=256, metavar="TOKENS", help="Tokens in a sequence.")
@click.option("--steps", type=int, default=5, metavar="N", help="Optimizer steps.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="UTF-8 text or JSON records (field `text`, or a task's fields), one a line or an array, to train on.  "
    "[default: CPython's own documentation; "
    "examples made of it for the task docs-agreement]",
)
@click.option(
    "--task",
    metavar="NAME|FILE.toml",
    shell_complete=complete.tasks,
    help=f"Train on labelled examples: {', '.join(built_in())}, or a task file.  [default: plain text]",
)
@click.option("--template/--no-template", default=True, help="Prompt as the task's template says, or only its text.")
@click.option(
    "--classifier/--label-words",
    default=None,
    help="Tell a task's options apart by a classifier that is trained too, or by the words of their answers.  "
    "[default: a classifier for RoBERTa and --scheme head]",
)
@token_options
@scheme_options
@click.option(
    "--optimizer", type=click.Choice(list(STATE_PER_PARAMETER)), default="adamw", help="What updates what is trained."
)
@click.option("--lr", type=float, default=1e-4, metavar="RATE", help="Learning rate.")
@click.option("--accumulate", type=int, default=1, metavar="N", help="Sequences whose gradients are summed in a step.")
@click.option(
    "--seed", type=int, default=0, metavar="N", help="Of the adapters' initial values and the order of the data."
)
@click.option("--threads", type=int, default=0, metavar="N", help="Kernel threads; 0 takes every processor.")
@click.option(
    "--compute",
    type=click.Choice(["auto", "f32", "bf16"]),
    default="auto",
    help="Products with packed weights in f32 or bf16 (sums are f32); auto takes the faster.",
)
@click.option(
    "--page-cache",
    type=click.Choice(["warm", "cold"]),
    default="warm",
    help="Cold drops weight pages from the page cache at every eviction.",
)
@click.option(
    "--verify",
    type=click.Choice(["first", "full"]),
    default="first",
    help="Check weight files against their checksums before the first step, or also at every page-in: a bit that flips "
    "during a long run then ends it.",
)
@click.option(
    "--lcsb-groups",
    type=int,
    metavar="K",
    help="lcsb: block b is trained in every K-th step, from step b mod K on.  [default: 4]",
)
@zeroth_order_options
@click.option("--eval-data", type=click.Path(path_type=Path), metavar="FILE", help="Text, or examples, to evaluate on.")
@click.option("--eval-every", type=int, default=0, metavar="N", help="Evaluate every N steps; 0 only at the end.")
@click.option("--eval-first", is_flag=True, help="Evaluate before the first step too.")
@click.option(
    "--eval-sequences", type=int, default=8, metavar="N", help="Sequences, or examples, of an evaluation, at most."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New directory for the results.  [default: runs/<time>-<model>-<schedule>]",
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where spilled values and optimizer state go; a disk, not tmpfs.  [default: the --out directory]",
)
@click.option(
    "--checkpoint-every",
    type=int,
    default=10,
    metavar="N",
    help="Save adapters and optimizer state after every N steps; after the last one always.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Go on with the run in DIR, by its own settings, to the same bits as if it had never stopped. "
    f"Only {', '.join(_options(KEEP_BITS))} may be given too.",
)
@click.option(
    "--allow-different-bits",
    is_flag=True,
    help=f"With --resume: go on with other versions, on another processor, or with another "
    f"{', '.join(_options(CHANGE_BITS))}.",
)
@click.option("--plan-check/--no-plan-check", default=True, help="Refuse a plan that does not fit the budget.")
@click.option(
    "--enforcement", type=click.Choice(list(ENFORCEMENTS)), help="Cap in this way only.  [default: the best available]"
)
@click.option(
    "--record",
    is_flag=True,
    help="Record the run with memray, for `memsim replay`: memray.bin, one allocation a value, each named.",
)
@json_option("the result record")
@file_option("--save-baseline", "Store the run for `memsim check`.")
@click.option("--test-balloon", hidden=True, metavar="SIZE", help="Touch this much unplanned memory in every step.")
def command(resume: Path | None, json_path: str | None, save_baseline: Path | None, **_: Any) -> None:
    """Fine-tune a model in a process that the kernel kills at --budget.

    Without --data the text is CPython's own documentation; a preset without weights gets seeded synthetic ones of the
    same shapes and bytes. A masked language model (RoBERTa) learns to guess 15 % of the tokens, the others the next
    token. What was trained is written in PEFT's format (where PEFT has none, as a part of the checkpoint), beside
    result.json and events.jsonl.

    Ctrl-C finishes the step, saves it and ends; a second Ctrl-C ends at once. `memsim run --resume DIR` goes on.
    """
    from memsim.cli.running.run_work import carry_out  # after the options are read: a mistake in them is said at once

    carry_out(resume, json_path, save_baseline)
