"""``memsim compare``: schedules side by side by what they learn and what that costs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from memsim.cli.drawing import SYNTHETIC
from memsim.cli.progress import bytes_progress, stage
from memsim.cli.zeroth_order import GroupedCommand, zeroth_order_options, zeroth_order_settings
from memsim.compare.contenders import LR_GRIDS, parse_contenders
from memsim.compare.device_run import simulate_run
from memsim.compare.experiment import Settings, compare
from memsim.compare.plots import plot
from memsim.compare.record import Curve, curve, record
from memsim.errors import InputError, UsageError
from memsim.files import write_text
from memsim.json_file import read_object
from memsim.models.lora import ALL_PROJECTIONS, LoraConfig
from memsim.runtime.capped_run import run
from memsim.runtime.directories import new_directory
from memsim.runtime.run_config import RunConfig, RunOutcome, RunProgress
from memsim.schedules.catalog import SCHEDULE_NAMES
from memsim.schedules.optimizers import STATE_PER_PARAMETER, OptimizerConfig
from memsim.simulator.device_file import find_device
from memsim.units import format_bytes, is_decimal, parse_bytes
from memsim.weights.cache import find_model
from memsim.weights.shipped import SPLITS, shipped_text

_SETTINGS = "settings.json"
_MAX_SETTINGS_BYTES = 1 << 20


@click.command(name="compare", cls=GroupedCommand, context_settings={"show_default": True})
@click.option("--model", default="tiny", metavar="NAME|PATH|HUB_ID", help="As for `memsim run`.")
@click.option(
    "--schedules",
    default="mebp,mezo:1000",
    metavar="LIST",
    help=f"What to compare: NAME or NAME:STEPS, of {', '.join(SCHEDULE_NAMES)}.",
)
@click.option("--steps", type=int, default=100, metavar="N", help="Steps of a schedule that names none of its own.")
@click.option("--seeds", type=int, default=3, metavar="K", help="Runs of each schedule.")
@click.option(
    "--lr-grid",
    "grids",
    multiple=True,
    metavar="[NAME:]LIST",
    help="Learning rates to choose from, for every schedule or for NAME; repeatable.  [default: "
    + "; ".join(f"{kind} {','.join(f'{lr:g}' for lr in grid)}" for kind, grid in LR_GRIDS.items())
    + "]",
)
@click.option("--tune-steps", type=int, metavar="N", help="Steps for choosing a rate, at most.  [default: all]")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="Text to train on.  [default: shipped]")
@click.option(
    "--validation-data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text on which learning rates are chosen.  [default: shipped]",
)
@click.option(
    "--test-data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text on which the chosen ones are scored.  [default: shipped]",
)
@click.option("--evals", type=int, default=10, metavar="N", help="Evaluations along a run.")
@click.option("--eval-sequences", type=int, default=32, metavar="N", help="Sequences of an evaluation, at most.")
@click.option("--device", default="iphone-15-pro-max", metavar="NAME|FILE", help="See `memsim devices`.")
@click.option("--budget", default="1GB", metavar="SIZE", help="Kernel limit on each run.")
@click.option("--seq-len", type=int, default=128, metavar="TOKENS", help="Tokens in a sequence.")
@click.option("--lora-rank", type=int, default=8, metavar="R", help="Rank of the adapters.")
@click.option("--lora-alpha", type=float, default=16.0, metavar="ALPHA", help="Adapters are scaled by alpha / rank.")
@click.option(
    "--target-modules", default=",".join(ALL_PROJECTIONS), metavar="LIST", help="Projections with an adapter."
)
@click.option(
    "--optimizer", type=click.Choice(list(STATE_PER_PARAMETER)), default="adamw", help="What updates the adapters."
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
    help="Continue there: only --schedules, --lr-grid and --seeds may differ.",
)
@click.option("--json", "json_path", metavar="PATH|-", help="Write the record to PATH, or to stdout.")
def command(
    model: str,
    schedules: str,
    steps: int,
    seeds: int,
    grids: tuple[str, ...],
    tune_steps: int | None,
    data: Path | None,
    validation_data: Path | None,
    test_data: Path | None,
    evals: int,
    eval_sequences: int,
    device: str,
    budget: str,
    seq_len: int,
    lora_rank: int,
    lora_alpha: float,
    target_modules: str,
    optimizer: str,
    accumulate: int,
    compute: str,
    threads: int,
    out: Path | None,
    resume: Path | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Compare schedules: loss and next-token accuracy against steps, forward passes, bytes read and seconds.

    Every figure is of a real, capped run, but for the seconds on --device, which are simulated. A learning rate is
    chosen for each schedule on the validation text; the test text only scores the chosen one, once for each seed. The
    default texts are parts of CPython's documentation that `tiny` has never seen. Written: compare.json, compare.svg
    and the record of every run.
    """
    if json_path not in (None, "-") and not Path(str(json_path)).absolute().parent.is_dir():
        raise InputError(f"cannot write {json_path}: its directory does not exist")
    contenders = parse_contenders(schedules, steps, grids)
    lora = LoraConfig(lora_rank, lora_alpha, tuple(name for name in target_modules.split(",") if name))
    settings = Settings(
        base=RunConfig(
            budget_bytes=parse_bytes(budget),
            decimal=is_decimal(budget),
            model=model,
            seq_len=seq_len,
            data=data or shipped_text("train"),
            eval_sequences=eval_sequences,
            lora=lora,
            optimizer=OptimizerConfig(optimizer),
            accumulate=accumulate,
            zeroth_order=zeroth_order_settings(options, [contender.schedule for contender in contenders]),
            compute=compute,
            threads=threads,
            events=False,
        ),
        validation=validation_data or shipped_text("validation"),
        test=test_data or shipped_text("test"),
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
    shared = _described(settings, target.name)
    directory = _directory(out, resume, f"{name}-compare", shared)
    curves = []
    try:
        for scored in compare(contenders, settings, directory, _run):
            curves.append(curve(scored, simulate_run(scored.contender, settings.base, target)))
            click.echo("  ".join(_row(curves[-1], settings.base.decimal)), err=True)
    except KeyboardInterrupt:
        click.echo(f"memsim: finished runs are kept; repeat the command with --resume {directory}", err=True)
        raise
    text = json.dumps(record(shared, curves), indent=2) + "\n"
    write_text(directory / "compare.json", text)
    plot(curves, target.name, directory / "compare.svg")
    if json_path == "-":
        click.echo(text, nl=False)
        return
    if json_path is not None:
        write_text(Path(json_path), text)
    click.echo(_table(curves, settings.base.decimal))
    click.echo(f"{directory}: compare.json, compare.svg, a directory for each run")


def _described(settings: Settings, device: str) -> dict[str, Any]:
    """Return what all runs share as plain data, the same whenever the same is asked for."""
    texts = {"data": settings.base.data, "validation": settings.validation, "test": settings.test}
    shipped = {shipped_text(split): f"shipped ({split})" for split in SPLITS}
    described: dict[str, Any] = asdict(settings.base)
    described |= {name: shipped.get(path, str(path)) for name, path in texts.items() if path}
    described |= {"evals": settings.evals, "tune_steps": settings.tune_steps, "device": device}
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def _directory(out: Path | None, resume: Path | None, stem: str, shared: dict[str, Any]) -> Path:
    """Return the directory of this comparison: a new one, or the one to continue in.

    Raises:
        InputError: A comparison with other settings is there.
    """
    if resume is not None:
        if read_object(resume / _SETTINGS, _MAX_SETTINGS_BYTES) != shared:
            raise InputError(f"{resume} holds a comparison with other settings; repeat them, or use --out")
        return resume
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


_HEADER = (
    "schedule",
    "steps",
    "lr",
    "loss",
    "accuracy",
    "forwards",
    "read",
    "s here",
    "s device",
    "peak",
    "device peak",
)


def _row(item: Curve, decimal: bool) -> tuple[str, ...]:
    """Return what a schedule had reached, and spent, at its end."""
    start, end = item.points[0], item.points[-1]
    return (
        item.schedule,
        f"{item.steps:,}",
        f"{item.lr:g}" + ("*" if item.lr_at_edge else ""),
        f"{start.loss.mean:.4f} -> {end.loss.mean:.4f} +-{end.loss.deviation:.4f}",
        f"{start.accuracy.mean:.2%} -> {end.accuracy.mean:.2%} +-{end.accuracy.deviation:.2%}",
        f"{end.forward_passes:,.0f}",
        format_bytes(end.bytes_read, decimal),
        f"{end.seconds:.1f}",
        f"{end.device_s:.1f}",
        format_bytes(item.peak_footprint_bytes, decimal),
        format_bytes(item.device_peak_footprint_bytes, decimal),
    )


def _table(curves: Sequence[Curve], decimal: bool) -> str:
    """Return one line for each schedule, the figures aligned."""
    rows = [_HEADER, *(_row(item, decimal) for item in curves)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    if any(item.lr_at_edge for item in curves):
        lines.append("* the best rate is at the edge of its grid; a wider --lr-grid may find a better one")
    return "\n".join(lines)
