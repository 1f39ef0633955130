"""``memsim compare``: schedules side by side by what they learn and what that costs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from memsim.cli import complete
from memsim.cli.drawing import SYNTHETIC
from memsim.cli.progress import bytes_progress, stage
from memsim.cli.scheme import schemes_options, settings_of_schemes
from memsim.cli.tokens import token_options
from memsim.cli.zeroth_order import GroupedCommand, zeroth_order_options, zeroth_order_settings
from memsim.compare.contenders import LR_GRIDS, parse_contenders
from memsim.compare.device_run import simulate_run
from memsim.compare.experiment import Settings, check_runs, compare
from memsim.compare.plots import plot
from memsim.compare.record import curve, record
from memsim.compare.table import row, table
from memsim.errors import InputError, UsageError
from memsim.files import write_text
from memsim.json_file import read_object
from memsim.runtime.capped_run import run
from memsim.runtime.directories import RUNS, new_directory
from memsim.runtime.run_config import RunConfig, RunOutcome, RunProgress
from memsim.schedules.catalog import SCHEDULE_NAMES
from memsim.schedules.optimizers import STATE_PER_PARAMETER, OptimizerConfig
from memsim.simulator.device_file import find_device
from memsim.tasks.task_file import find_task
from memsim.units import is_decimal, parse_bytes
from memsim.weights.cache import find_model
from memsim.weights.shipped import SPLITS, Split, has_examples, shipped_examples, shipped_text

_SETTINGS = "settings.json"
_MAX_SETTINGS_BYTES = 1 << 20


@click.command(name="compare", cls=GroupedCommand, context_settings={"show_default": True})
@click.option(
    "--model",
    default="tiny",
    metavar="NAME|PATH|HUB_ID",
    shell_complete=complete.models,
    help="As for `memsim run`.",
)
@click.option(
    "--schedules",
    default="mebp,mezo:1000",
    metavar="LIST",
    shell_complete=complete.schedule_list,
    help=f"What to compare: NAME or NAME:STEPS, of {', '.join(SCHEDULE_NAMES)}.",
)
@click.option("--steps", type=int, default=100, metavar="N", help="Steps of a schedule that names none of its own.")
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
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text, or examples, to train on.  [default: shipped]",
)
@click.option(
    "--validation-data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What learning rates are chosen on.  [default: shipped]",
)
@click.option(
    "--test-data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the chosen ones are scored on.  [default: shipped]",
)
@click.option("--evals", type=int, default=10, metavar="N", help="Evaluations along a run.")
@click.option(
    "--eval-sequences", type=int, default=32, metavar="N", help="Sequences, or examples, of an evaluation, at most."
)
@click.option(
    "--device",
    default="iphone-15-pro-max",
    metavar="NAME|FILE",
    shell_complete=complete.devices,
    help="See `memsim devices`.",
)
@click.option("--budget", default="1GB", metavar="SIZE", help="Kernel limit on each run.")
@click.option("--seq-len", type=int, default=128, metavar="TOKENS", help="Tokens in a sequence.")
@schemes_options
@click.option(
    "--optimizer", type=click.Choice(list(STATE_PER_PARAMETER)), default="adamw", help="What updates what is trained."
)
@click.option("--accumulate", type=int, default=1, metavar="N", help="Sequences whose gradients are summed in a step.")
@zeroth_order_options
@click.option("--compute", type=click.Choice(["auto", "f32", "bf16"]), default="auto", help="As for `memsim run`.")
@click.option("--threads", type=int, default=1, metavar="N", help="Kernel threads; 0 takes every processor.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="New directory.  [default: below runs]")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Continue there: only --schedules, --scheme, --lr-grid and --seeds may differ.",
)
@click.option("--json", "json_path", metavar="PATH|-", help="Write the record to PATH, or to stdout.")
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
    """Compare schedules, and schemes: loss and accuracy against steps, forward passes, bytes read and seconds.

    Every figure is of a real, capped run, but for the seconds on --device, which are simulated. A learning rate is
    chosen for each schedule and scheme on the validation text; the test text only scores the chosen one, once for each
    seed. The default texts are parts of CPython's documentation that `tiny` has never seen; --task docs-agreement makes
    its examples of them. Written: compare.json, compare.svg and the record of every run.
    """
    if json_path not in (None, "-") and not Path(str(json_path)).absolute().parent.is_dir():
        raise InputError(f"cannot write {json_path}: its directory does not exist")
    contenders = parse_contenders(schedules, steps, grids, options["schemes"])
    settings = Settings(
        base=RunConfig(
            budget_bytes=parse_bytes(budget),
            decimal=is_decimal(budget),
            model=model,
            seq_len=seq_len,
            data=data or _shipped(task, "train"),
            task=task,
            template=template,
            tokenizer=tokenizer,
            bos=bos,
            eval_sequences=eval_sequences,
            **settings_of_schemes(options, options["schemes"]),
            optimizer=OptimizerConfig(optimizer),
            accumulate=accumulate,
            zeroth_order=zeroth_order_settings(options, list(dict.fromkeys(item.schedule for item in contenders))),
            compute=compute,
            threads=threads,
            events=False,
        ),
        validation=validation_data or _shipped(task, "validation"),
        test=test_data or _shipped(task, "test"),
        tune_steps=tune_steps,
        seeds=seeds,
        evals=evals,
    )
    target = find_device(device)
    if out is not None and resume is not None:
        raise UsageError("--out makes a new directory and --resume continues in an old one; give one of them")
    with bytes_progress("packing") as packing:
        pack, name = find_model(model, packing)
    if pack.source == "synthetic":
        click.echo(SYNTHETIC, err=True)
    check_runs(contenders, settings, out or RUNS)
    shared = _described(settings, target.name)
    if resume is not None and read_object(resume / _SETTINGS, _MAX_SETTINGS_BYTES) != shared:
        raise InputError(f"{resume} holds a comparison with other settings; repeat them, or use --out")
    stage("simulating")
    on_device = [simulate_run(contender, settings.base, target) for contender in contenders]
    directory = resume or _new_directory(out, f"{name}-compare", shared)
    curves = []
    try:
        for scored, simulated in zip(compare(contenders, settings, directory, _run), on_device, strict=True):
            curves.append(curve(scored, simulated))
            click.echo("  ".join(row(curves[-1], settings.base.decimal)), err=True)
    except KeyboardInterrupt:
        click.echo(f"memsim: finished runs are kept; repeat the command with --resume {directory}", err=True)
        raise
    text = json.dumps(record(shared, curves), indent=2) + "\n"
    write_text(directory / "compare.json", text)
    plot(curves, target.name, task is not None, directory / "compare.svg")
    if json_path == "-":
        click.echo(text, nl=False)
        return
    if json_path is not None:
        write_text(Path(json_path), text)
    click.echo(table(curves, settings.base.decimal))
    click.echo(f"{directory}: compare.json, compare.svg, a directory for each run")


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
    described: dict[str, Any] = asdict(settings.base)
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
    return run(config, RunProgress(note=lambda text: click.echo(text, err=True)))
