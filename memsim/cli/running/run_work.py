"""What ``memsim run`` does once its options are read: one run, or the rest of one, and what is said of it."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

from memsim.cli.drawing import SYNTHETIC, drawn
from memsim.cli.running.run_settings import asked_changes, asked_run, command_line
from memsim.cli.say import say
from memsim.regression.baseline import from_run, write_baseline
from memsim.result_file import emit_json
from memsim.results import RecordingResult, Result, TokenizerResult
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig, scheme_of
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.resume import read_resumption
from memsim.runtime.resume import resume as resume_run
from memsim.runtime.supervise import exit_code
from memsim.tasks.task_file import find_task
from memsim.units import format_bytes


def carry_out(resume: Path | None, json_path: str | None, save_baseline: Path | None) -> None:
    """Run what the options of the current command ask for."""
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
