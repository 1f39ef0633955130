"""What ``memsim compare`` does once the options are read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from memsim.cli.drawing import SYNTHETIC
from memsim.cli.progress import bytes_progress, stage
from memsim.cli.running.run_settings import command_line, given_settings
from memsim.cli.say import say
from memsim.cli.scheme_options import scheme_values
from memsim.cli.zeroth_order_options import zeroth_order_values
from memsim.compare.contenders import Shared, parse_contenders, with_contender
from memsim.compare.device_run import simulate_run
from memsim.compare.experiment import Settings, check_runs, compare
from memsim.compare.plots import plot
from memsim.compare.record import curve, record
from memsim.compare.table import row, table
from memsim.errors import InputError, UsageError
from memsim.files import write_text
from memsim.json_file import read_object
from memsim.result_file import emit_json
from memsim.run_directory.directory import RUNS, new_directory
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.run_progress import RunProgress
from memsim.runtime.settings import refuse_ignored
from memsim.simulator.device_file import find_device
from memsim.tasks.task_file import find_task
from memsim.units import is_decimal, parse_bytes
from memsim.weights.cache import find_model
from memsim.weights.shipped import SPLITS, Split, has_examples, shipped_examples, shipped_text

_SETTINGS = "settings.json"

_MAX_SETTINGS_BYTES = 1 << 20


def command(
    model: str,
    schedules: str,
    steps: int,
    seeds: int,
    grids: tuple[str, ...],
    tune_steps: int | None,
    task: str | None,
    tokenizer: str | None,
    bos: Literal["auto", "document", "never"],
    template: bool,
    data: Path | None,
    validation_data: Path | None,
    test_data: Path | None,
    evals: int,
    eval_sequences: int,
    device: str,
    budget: str,
    seq_len: int,
    optimizer: str,
    accumulate: int,
    compute: str,
    threads: int,
    out: Path | None,
    resume: Path | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Compare schedules, and schemes: loss and accuracy against steps, forward passes, bytes read and seconds."""
    contenders = parse_contenders(schedules, steps, grids, options["schemes"])
    validation = validation_data or _shipped(task, "validation")
    settings = Settings(
        base=RunConfig(
            budget_bytes=parse_bytes(budget),
            decimal=is_decimal(budget),
            model=model,
            seq_len=seq_len,
            data=data or _shipped(task, "train"),
            task=task,
            template=template,
            eval_data=validation,
            tokenizer=tokenizer,
            bos=bos,
            eval_sequences=eval_sequences,
            accumulate=accumulate,
            compute=compute,
            threads=threads,
            events=False,
        ),
        shared=Shared(**scheme_values(options), optimizer=optimizer, zeroth_order=zeroth_order_values(options)),
        validation=validation,
        test=test_data or _shipped(task, "test"),
        tune_steps=tune_steps,
        seeds=seeds,
        evals=evals,
    )
    configs = [with_contender(settings.base, item, item.lrs[0], settings.shared) for item in contenders]
    refuse_ignored(configs, given_settings(click.get_current_context()))
    target = find_device(device)
    if out is not None and resume is not None:
        raise UsageError("--out makes a new directory and --resume continues in an old one; give one of them")
    with bytes_progress("packing") as packing:
        pack, name = find_model(model, packing)
    if pack.source == "synthetic":
        say(SYNTHETIC, err=True)
    check_runs(contenders, settings, out or RUNS)
    shared = _described(settings, target.name)
    if resume is not None and read_object(resume / _SETTINGS, _MAX_SETTINGS_BYTES) != shared:
        raise InputError(f"{resume} holds a comparison with other settings; repeat them, or use --out")
    stage("simulating")
    on_device = [simulate_run(contender, settings.base, settings.shared, target) for contender in contenders]
    directory = resume or _new_directory(out, f"{name}-compare", shared)
    curves = []
    try:
        for scored, simulated in zip(compare(contenders, settings, directory, _run), on_device, strict=True):
            curves.append(curve(scored, simulated))
            say("  ".join(row(curves[-1], settings.base.decimal)), err=True)
    except KeyboardInterrupt:
        say(f"memsim: finished runs are kept; repeat the command with --resume {directory}", err=True)
        raise
    found = record(shared, curves)
    emit_json(found, str(directory / "compare.json"))
    plot(curves, target.name, task is not None, directory / "compare.svg")
    if json_path is not None:
        emit_json(found, json_path)
    if json_path == "-":
        return
    say(*table(curves, settings.base.decimal))
    say(f"{directory}: compare.json, compare.svg, a directory for each run")


def _shipped(task: str | None, split: Split) -> Path:
    """Return what ``split`` is where the user names no file.

    Raises:
        InputError: No such task.
        UsageError: One whose examples memsim cannot make.
    """
    if task is None:
        return shipped_text(split)
    find_task(task)
    if not has_examples(task):
        raise UsageError(f"--task {task} needs --data, --validation-data and --test-data: JSONL files of its examples")
    return shipped_examples(task, split)


def _described(settings: Settings, device: str) -> dict[str, Any]:
    """Return what all runs share as plain data, the same whenever the same is asked for."""
    texts = {"data": settings.base.data, "validation": settings.validation, "test": settings.test}
    task = settings.base.task
    shipped = {shipped_text(split): f"shipped ({split})" for split in SPLITS}
    if task is not None and has_examples(task):
        shipped |= {shipped_examples(task, split): f"shipped ({split})" for split in SPLITS}
    described: dict[str, Any] = asdict(settings.base) | asdict(settings.shared) | {"eval_data": None}
    described |= {name: shipped.get(path, str(path)) for name, path in texts.items() if path}
    described |= {"evals": settings.evals, "tune_steps": settings.tune_steps, "device": device}
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def _new_directory(out: Path | None, stem: str, shared: dict[str, Any]) -> Path:
    """Return the directory of a comparison, created."""
    with new_directory(out, stem) as directory:
        write_text(directory.path / _SETTINGS, json.dumps(shared, indent=2) + "\n")
        directory.checkpoints.rmdir()  # each run has its own
        directory.settle()
    return directory.path


def _run(config: RunConfig) -> RunOutcome:
    """Run one configuration with a line on stderr when it begins."""
    assert config.out is not None
    stage(f"{config.out.name}: {config.schedule}, {config.steps} steps, learning rate {config.optimizer.lr:g}")
    return run(config, RunProgress(note=lambda text: say(text, err=True)), command_line())
