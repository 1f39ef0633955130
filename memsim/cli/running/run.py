"""``memsim run``: one fine-tuning run in a capped process."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from memsim.cap.open import ENFORCEMENTS
from memsim.cli import complete
from memsim.cli.drawing import SYNTHETIC, drawn
from memsim.cli.json_option import file_option, json_option
from memsim.cli.running.run_settings import asked_changes, asked_run, command_line
from memsim.cli.say import say
from memsim.cli.scheme_options import scheme_options
from memsim.cli.tokens import token_options
from memsim.cli.zeroth_order_options import GroupedCommand, zeroth_order_options
from memsim.models.presets import PRESETS
from memsim.regression.baseline import from_run, write_baseline
from memsim.result_file import emit_json
from memsim.results import RecordingResult, Result, TokenizerResult
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig, scheme_of
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.resume import CHANGE_BITS, KEEP_BITS, read_resumption
from memsim.runtime.resume import resume as resume_run
from memsim.runtime.supervise import exit_code
from memsim.schedules.catalog import SCHEDULE_NAMES
from memsim.schedules.optimizers import STATE_PER_PARAMETER
from memsim.search.search import AUTO
from memsim.tasks.task_file import built_in, find_task
from memsim.units import format_bytes

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
    help="UTF-8 text or JSONL (field `text`, or a task's fields) to train on.  [default: CPython's own documentation; "
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
    context = click.get_current_context()
    if resume is not None:
        allowed = context.params["allow_different_bits"]
        going_on = read_resumption(resume, asked_changes(context), allowed, command_line())
        with drawn(going_on.config) as progress:
            outcome = resume_run(going_on, progress)
        _tell(outcome, going_on.config, json_path, save_baseline)
        return
    config = asked_run(context)
    with drawn(config) as progress:
        outcome = run(config, progress, command_line())
    _tell(outcome, config, json_path, save_baseline)


def _tell(outcome: RunOutcome, config: RunConfig, json_path: str | None, save_baseline: Path | None) -> None:
    """Show and store a run that has ended, and end with its exit code."""
    result = outcome.result
    if save_baseline is not None and result.exit_reason == "done":
        write_baseline(save_baseline, from_run(outcome.directory, config, result))
    if json_path is not None:
        emit_json(result, json_path)
    if json_path != "-":
        say(*_summary(result, config, config.decimal, outcome.labels))
        trained = ", model.safetensors" if result.scheme == "full" else ", adapter"
        files = trained * bool(result.fits) + ", memray.bin" * bool(result.recording)
        say(f"{outcome.directory}: result.json, events.jsonl{files}")
    if outcome.message:
        say(f"memsim: {outcome.message}", err=True)
    if result.exit_reason is not None and result.exit_reason != "done":
        sys.exit(exit_code(result.exit_reason))


def _summary(result: Result, config: RunConfig, decimal: bool, labels: int) -> list[str]:
    """Return the result for people, line by line."""

    def size(n_bytes: int | None) -> str:
        return "unknown" if n_bytes is None else format_bytes(n_bytes, decimal)

    rows = [
        ("model", f"{result.model}, {result.schedule}, seq {result.seq_len}, {scheme_of(config).describe()}"),
        ("verdict", f"{result.exit_reason} under {size(result.budget_bytes)} ({result.enforcement})"),
        ("peak footprint", f"{size(result.peak_footprint_bytes)} (planned {size(result.planned_footprint_bytes)})"),
        ("  baseline", f"{size(result.baseline_footprint_bytes)} interpreter, libraries, kernels"),
        ("  working set", size(result.peak_working_set_bytes)),
        ("file floor", f"{size(result.file_floor_bytes)} of file pages beside it"),
    ]
    if config.task is not None:
        likelihood = f"the {find_task(config.task).score} of the answers' log likelihoods"
        how = "a classifier" if labels else likelihood
        rows.append(("task", f"{result.task}: options are chosen by {how}"))
    if result.tokenizer is not None:
        rows.append(("tokens", _tokens(result.tokenizer)))
    if result.step_s is not None:
        predicted = f", predicted {result.planned_step_s:.2f} s" if result.planned_step_s is not None else ""
        rows.append(("step", f"{result.step_s:.2f} s (median of {len(result.steps)}{predicted})"))
    losses = [step.loss for step in result.steps if step.loss is not None]
    if losses:
        rows.append(("loss", f"{losses[0]:.4f} -> {losses[-1]:.4f}"))
    rows += [
        (f"eval at {e.step}", f"loss {e.loss:.4f}, accuracy {e.accuracy:.1%}")
        for e in result.evals
        if e.loss is not None and e.accuracy is not None
    ]
    if (recording := result.recording) is not None:
        rows.append(("recording", _cost(recording, size)))
    if result.weights == "synthetic":
        rows.append(("weights", SYNTHETIC))
    return [f"{name:<16}{text}" for name, text in rows]


def _tokens(tokenizer: TokenizerResult) -> str:
    """Say what made the tokens, and what it added."""
    if tokenizer.ends:
        return f"{tokenizer.name}; every window between {' and '.join(tokenizer.ends)}"
    if not tokenizer.begins:
        return f"{tokenizer.name}; nothing begins a text"
    where = "every window" if tokenizer.every_window else "every document"
    return f"{tokenizer.name}; {where} begins with {' '.join(tokenizer.begins)}"


def _cost(recording: RecordingResult, size: Callable[[int | None], str]) -> str:
    """Say what recording cost."""
    text = (
        f"{recording.steps} steps, {size(recording.capture_bytes)}; the tracker holds {size(recording.tracker_bytes)}"
    )
    if recording.recorded_step_s is None or recording.unrecorded_step_s is None:
        return f"{text}; with 3 steps or more it would say what it costs"
    cost = recording.recorded_step_s / recording.unrecorded_step_s - 1
    return (
        f"{text}; a step {recording.recorded_step_s:.2f} s, {recording.unrecorded_step_s:.2f} s without ({cost:+.1%})"
    )
