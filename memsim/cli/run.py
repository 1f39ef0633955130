"""``memsim run``: one fine-tuning run in a capped process."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from memsim.cli import complete
from memsim.cli.drawing import SYNTHETIC, drawn
from memsim.cli.scheme import scheme_options, scheme_settings
from memsim.cli.tokens import token_options
from memsim.cli.zeroth_order import GroupedCommand, zeroth_order_options, zeroth_order_settings
from memsim.errors import InputError, UsageError
from memsim.json_file import shown
from memsim.models.presets import PRESETS
from memsim.regression.baseline import from_run, write_baseline
from memsim.result_file import emit_json
from memsim.results import RecordingResult, Result, TokenizerResult
from memsim.runtime.cap import ENFORCEMENTS
from memsim.runtime.capped_run import run
from memsim.runtime.resume import CHANGE_BITS, KEEP_BITS, read_resumption
from memsim.runtime.resume import resume as resume_run
from memsim.runtime.run_config import RunConfig, RunOutcome, scheme_of
from memsim.runtime.supervise import exit_code
from memsim.schedules.catalog import SCHEDULE_NAMES
from memsim.schedules.optimizers import STATE_PER_PARAMETER, OptimizerConfig
from memsim.search.plan_file import PlanFile, read_plan
from memsim.search.search import AUTO
from memsim.tasks.task_file import built_in, find_task
from memsim.units import format_bytes, is_decimal, parse_bytes
from memsim.weights.shipped import has_examples, shipped_examples

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
@click.option("--json", "json_path", metavar="PATH|-", help="Write the result record to PATH, or to stdout.")
@click.option(
    "--save-baseline", type=click.Path(path_type=Path), metavar="FILE", help="Store the run for `memsim check`."
)
@click.option("--test-balloon", hidden=True, metavar="SIZE", help="Touch this much unplanned memory in every step.")
def command(
    budget: str | None,
    plan: Path | None,
    model: str,
    schedule: str,
    seq_len: int,
    steps: int,
    data: Path | None,
    task: str | None,
    classifier: bool | None,
    template: bool,
    tokenizer: str | None,
    bos: Literal["auto", "document", "never"],
    optimizer: str,
    lr: float,
    accumulate: int,
    seed: int,
    threads: int,
    compute: str,
    page_cache: str,
    verify: Literal["first", "full"],
    lcsb_groups: int | None,
    eval_data: Path | None,
    eval_every: int,
    eval_first: bool,
    eval_sequences: int,
    out: Path | None,
    scratch: Path | None,
    checkpoint_every: int,
    resume: Path | None,
    allow_different_bits: bool,
    plan_check: bool,
    enforcement: str | None,
    record: bool,
    json_path: str | None,
    save_baseline: Path | None,
    test_balloon: str | None,
    **options: Any,
) -> None:
    """Fine-tune a model in a process that the kernel kills at --budget.

    Without --data the text is CPython's own documentation; a preset without weights gets seeded synthetic ones of the
    same shapes and bytes. A masked language model (RoBERTa) learns to guess 15 % of the tokens, the others the next
    token. What was trained is written in PEFT's format (where PEFT has none, as a part of the checkpoint), beside
    result.json and events.jsonl.

    Ctrl-C finishes the step, saves it and ends; a second Ctrl-C ends at once. `memsim run --resume DIR` goes on.
    """
    for path in (json_path if json_path != "-" else None, save_baseline):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise InputError(f"cannot write {path}: its directory does not exist")
    if resume is not None:
        going_on = read_resumption(resume, _changes(budget), allow_different_bits)
        with drawn(going_on.config) as progress:
            outcome = resume_run(going_on, progress)
        _tell(outcome, going_on.config, json_path, save_baseline)
        return
    planned = read_plan(plan) if plan else None
    if budget is None and planned is None:
        raise click.MissingParameter(ctx=click.get_current_context(), param_hint="'--budget'", param_type="option")
    if allow_different_bits:
        raise UsageError("--allow-different-bits is for --resume")
    if lcsb_groups is not None and schedule != "lcsb":
        raise UsageError(f"--lcsb-groups is for the schedule lcsb, not {schedule}")
    config = RunConfig(
        budget_bytes=parse_bytes(budget) if budget else planned.budget_bytes if planned else 0,
        decimal=budget is None or is_decimal(budget),
        model=model,
        schedule=schedule,
        seq_len=seq_len,
        steps=steps,
        data=data or (shipped_examples(task, "train") if task is not None and has_examples(task) else None),
        task=task,
        classifier=classifier,
        template=template,
        tokenizer=tokenizer,
        bos=bos,
        eval_data=eval_data,
        eval_every=eval_every,
        eval_sequences=eval_sequences,
        eval_first=eval_first,
        **scheme_settings(options),
        optimizer=OptimizerConfig(optimizer, lr),
        accumulate=accumulate,
        seed=seed,
        threads=threads,
        compute=compute,
        cold=page_cache == "cold",
        verify=verify,
        out=out,
        scratch=scratch,
        checkpoint_every=checkpoint_every,
        plan_check=plan_check,
        enforcement=enforcement,
        balloon_bytes=parse_bytes(test_balloon) if test_balloon else 0,
        lcsb_groups=lcsb_groups,
        zeroth_order=zeroth_order_settings(options, [schedule]),
        record=record,
    )
    if planned is not None:
        config = _as_planned(config, planned, str(plan), click.get_current_context())
    with drawn(config) as progress:
        outcome = run(config, progress)
    _tell(outcome, config, json_path, save_baseline)


def _changes(budget: str | None) -> dict[str, Any]:
    """Return the settings that the command line gives a run that goes on.

    Raises:
        UsageError: One that it must keep.
    """
    ctx = click.get_current_context()
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    given -= {"resume", "allow_different_bits", "json_path", "save_baseline"}
    changes: dict[str, Any] = {}
    if budget is not None:
        changes = {"budget_bytes": parse_bytes(budget), "decimal": is_decimal(budget)}
        given.remove("budget")
    if "page_cache" in given:
        changes["cold"] = ctx.params["page_cache"] == "cold"
        given.remove("page_cache")
    kept = sorted(given - {*KEEP_BITS, *CHANGE_BITS})
    if kept:
        raise UsageError(f"--{kept[0].replace('_', '-')} is a setting that a run keeps; leave it out with --resume")
    return changes | {name: ctx.params[name] for name in given}


def _tell(outcome: RunOutcome, config: RunConfig, json_path: str | None, save_baseline: Path | None) -> None:
    """Show and store a run that has ended, and end with its exit code."""
    result = outcome.result
    if save_baseline is not None and result.exit_reason == "done":
        write_baseline(save_baseline, from_run(outcome.directory, config, result))
    if json_path is not None:
        emit_json(result, json_path)
    if json_path != "-":
        click.echo(_summary(result, config, config.decimal, outcome.labels))
        trained = ", model.safetensors" if result.scheme == "full" else ", adapter"
        files = trained * bool(result.fits) + ", memray.bin" * bool(result.recording)
        click.echo(f"{outcome.directory}: result.json, events.jsonl{files}")
    if outcome.message:
        click.echo(f"memsim: {outcome.message}", err=True)
    if result.exit_reason is not None and result.exit_reason != "done":
        sys.exit(exit_code(result.exit_reason))


_PLANNED = ("model", "seq_len", "scheme", "lora_rank", "target_modules", "virtual_tokens") + (
    ("optimizer", "accumulate", "threads")
)
"""Options that a plan decides."""


def _as_planned(config: RunConfig, planned: PlanFile, where: str, context: click.Context) -> RunConfig:
    """Return the run that a plan was made for; what it leaves open is as asked.

    Raises:
        UsageError: An option was given that says something else than the plan.
    """
    decided = {"schedule": AUTO} | {name: getattr(planned, name) for name in _PLANNED}
    decided["target_modules"] = ",".join(planned.target_modules)
    for name, value in decided.items():
        given = context.params[name]
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and given != value:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {given} is not what {where} was made for, {shown(value)}; leave {option} out")
    lora = replace(config.lora, rank=planned.lora_rank, target_modules=planned.target_modules)
    return replace(
        config,
        schedule=AUTO,
        plan=planned,
        model=planned.model,
        seq_len=planned.seq_len,
        scheme=planned.scheme,
        lora=lora if planned.scheme == "lora" else config.lora,
        virtual_tokens=planned.virtual_tokens or config.virtual_tokens,
        optimizer=replace(config.optimizer, name=planned.optimizer),
        accumulate=planned.accumulate,
        threads=planned.threads,
    )


def _summary(result: Result, config: RunConfig, decimal: bool, labels: int) -> str:
    """Return the result for people."""

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
    return "\n".join(f"{name:<16}{text}" for name, text in rows)


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
