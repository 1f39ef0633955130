"""``memsim bench``: kernels, whole steps, footprints and losses, measured against roofs and peers."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from memsim.bench.kernels import KernelsConfig, KernelsReport, Row, Total, bench_kernels
from memsim.bench.record import record
from memsim.bench.runs import compare_losses, footprints
from memsim.bench.step import StepReport, bench_step
from memsim.cli import complete
from memsim.cli.progress import stage
from memsim.errors import InputError, UsageError
from memsim.models.presets import PRESETS
from memsim.results import Result, emit_json
from memsim.runtime.run_config import RunConfig
from memsim.schedules.catalog import SCHEDULE_NAMES
from memsim.schedules.zeroth_order import METHODS
from memsim.search.search import AUTO
from memsim.units import format_bytes, is_decimal, parse_bytes

Cells = list[tuple[str, ...]]

_MODEL = click.option(
    "--model",
    default="qwen2.5-0.5b",
    metavar="NAME|DIR",
    shell_complete=complete.models,
    help="A preset, a pack or a directory.",
)
_SCHEDULE = click.option(
    "--schedule", type=click.Choice([*SCHEDULE_NAMES, AUTO]), default="tiled", help="What a step keeps and recomputes."
)
_SEQ_LEN = click.option("--seq-len", type=click.IntRange(1), default=256, metavar="TOKENS", help="Tokens a sequence.")
_BUDGET = click.option("--budget", default="1GB", metavar="SIZE", help="Cap of each run.")
_THREADS = click.option(
    "--threads", type=click.IntRange(0), default=0, metavar="N", help="Of every contestant; 0 takes every processor."
)
_COMPUTE = click.option(
    "--compute", type=click.Choice(["auto", "f32", "bf16"]), default="auto", help="Compute path; auto: the faster."
)
_JSON = click.option("--json", "json_path", metavar="PATH|-", help="Write the record to PATH, or to stdout.")


@click.group(name="bench")
def command() -> None:
    """Time kernels and whole steps beside this machine's measured roofs and what people run today.

    Contestants are processes of their own and take turns, so that noise hits all alike. Torch's figures need the
    extra `torch`. Leave the machine idle.
    """


@command.command(name="kernels", context_settings={"show_default": True})
@click.option(
    "--models",
    default="qwen2.5-0.5b,qwen2.5-3b",
    metavar="LIST",
    shell_complete=complete.model_list,
    help="Presets whose shapes are timed.",
)
@click.option("--rows", "--seq-len", type=click.IntRange(1), default=256, metavar="TOKENS", help="M of the products.")
@click.option(
    "--compute", type=click.Choice(["all", "f32", "bf16"]), default="all", help="Compute paths of packed products."
)
@click.option("--rounds", type=click.IntRange(1), default=5, metavar="N", help="Turns of each contestant at a row.")
@click.option("--repeats", type=click.IntRange(1), default=3, metavar="N", help="Timed calls a turn.")
@click.option("--quick", is_flag=True, help="Only the products of a block, two rounds.")
@_THREADS
@_JSON
def kernels_command(
    models: str, rows: int, compute: str, rounds: int, repeats: int, quick: bool, threads: int, json_path: str | None
) -> None:
    """Verify every kernel against float64, then time it: GFLOP/s, share of the roof, unpacking, ratios to peers.

    Roofs are loops over registers. A wrong kernel ends the command with exit code 1 before anything is timed.
    """
    _check_json(json_path)
    config = KernelsConfig(
        models=tuple(name.strip().lower() for name in models.split(",") if name.strip()),
        rows=rows,
        computes=() if compute == "all" else (compute,),
        rounds=2 if quick else rounds,
        repeats=repeats,
        quick=quick,
        threads=_threads(threads),
    )
    if not config.models:
        raise UsageError(f"--models is empty; name presets: {','.join(PRESETS)}")
    _warn_if_busy()
    report = bench_kernels(config, stage)
    _emit("bench kernels", report, asdict(config), json_path, _kernels_text(report))


@command.command(name="step", context_settings={"show_default": True})
@_MODEL
@_SCHEDULE
@_SEQ_LEN
@click.option("--steps", type=click.IntRange(1), default=2, metavar="N", help="Timed steps a round.")
@click.option("--rounds", type=click.IntRange(1), default=3, metavar="N", help="Turns of each contestant.")
@_COMPUTE
@_BUDGET
@_THREADS
@_JSON
def step_command(
    model: str, schedule: str, seq_len: int, steps: int, rounds: int, compute: str, budget: str, threads: int,
    json_path: str | None,
) -> None:  # fmt: skip
    """Time whole capped steps beside the roof and beside transformers with PEFT on the same shapes.

    The peers are f32 with gradient checkpointing and bf16 without, the fastest of what people run.
    """
    _bench_step(model, schedule, seq_len, steps, rounds, compute, budget, threads, json_path, "bench step")


def _bench_step(
    model: str, schedule: str, seq_len: int, steps: int, rounds: int, compute: str, budget: str, threads: int,
    json_path: str | None, name: str,
) -> None:  # fmt: skip
    _check_json(json_path)
    config = RunConfig(
        budget_bytes=parse_bytes(budget),
        model=model,
        schedule=schedule,
        seq_len=seq_len,
        steps=steps,
        compute=compute,
        threads=_threads(threads),
    )
    _warn_if_busy()
    report = bench_step(config, rounds, stage)
    settings = {"steps": steps, "rounds": rounds}
    _emit(name, report, settings, json_path, _step_text(report, is_decimal(budget)))


@command.command(name="zo", context_settings={"show_default": True})
@_MODEL
@click.option("--schedule", type=click.Choice(list(METHODS)), default="mezo", help="The zeroth-order method.")
@_SEQ_LEN
@click.option("--steps", type=click.IntRange(1), default=2, metavar="N", help="Timed steps a round.")
@click.option("--rounds", type=click.IntRange(1), default=3, metavar="N", help="Turns of each contestant.")
@_COMPUTE
@_BUDGET
@_THREADS
@_JSON
def zo_command(
    model: str, schedule: str, seq_len: int, steps: int, rounds: int, compute: str, budget: str, threads: int,
    json_path: str | None,
) -> None:  # fmt: skip
    """Time whole capped zeroth-order steps beside MeZO by transformers with PEFT on the same shapes.

    The peers move the adapters in place around two forwards, in f32 and in bf16, as MeZO's own code does.
    """
    _bench_step(model, schedule, seq_len, steps, rounds, compute, budget, threads, json_path, "bench zo")


@command.command(name="footprint", context_settings={"show_default": True})
@click.option(
    "--models",
    default="qwen2.5-0.5b",
    metavar="LIST",
    shell_complete=complete.model_list,
    help="Presets, packs or directories.",
)
@click.option("--seq-lens", default="256,512,1024,2048", metavar="LIST", help="Tokens a sequence.")
@click.option("--steps", type=click.IntRange(1), default=2, metavar="N", help="Steps of each run.")
@_SCHEDULE
@_COMPUTE
@_BUDGET
@_THREADS
@_JSON
def footprint_command(
    models: str, seq_lens: str, steps: int, schedule: str, compute: str, budget: str, threads: int,
    json_path: str | None,
) -> None:  # fmt: skip
    """Measure the peak footprint of capped runs, at several lengths and models."""
    _check_json(json_path)
    lengths = [_length(text) for text in seq_lens.split(",")]
    configs = [
        RunConfig(
            budget_bytes=parse_bytes(budget),
            model=model,
            schedule=schedule,
            seq_len=seq_len,
            steps=steps,
            compute=compute,
            threads=_threads(threads),
        )
        for model in models.split(",")
        for seq_len in lengths
    ]
    runs = footprints(configs, stage)
    plain = {"runs": [asdict(run) for run in runs]}
    _emit("bench footprint", plain, {"steps": steps}, json_path, _footprint_text(runs, is_decimal(budget)))


@command.command(name="loss", context_settings={"show_default": True})
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE", help="Text.  [default: CPython's documentation]"
)
@_MODEL
@_SCHEDULE
@_SEQ_LEN
@click.option("--steps", type=click.IntRange(1), default=50, metavar="N", help="Optimizer steps.")
@_BUDGET
@_THREADS
@_JSON
def loss_command(
    data: Path | None, model: str, schedule: str, seq_len: int, steps: int, budget: str, threads: int,
    json_path: str | None,
) -> None:  # fmt: skip
    """Train twice on the same text, in f32 and in bf16, and compare the losses step by step."""
    _check_json(json_path)
    f32, bf16 = (
        RunConfig(
            budget_bytes=parse_bytes(budget),
            data=data,
            model=model,
            schedule=schedule,
            seq_len=seq_len,
            steps=steps,
            compute=compute,
            threads=_threads(threads),
        )
        for compute in ("f32", "bf16")
    )
    report = compare_losses(f32, bf16, stage)
    one, other = (f"{run.steps[0].loss:.4f} -> {run.steps[-1].loss:.4f}" for run in report.runs)
    text = (
        f"{steps} steps of {report.runs[0].model}, seq {seq_len}, {report.runs[0].weights} weights\n"
        f"f32   loss {one}\nbf16  loss {other}\n"
        f"difference of a step's losses: at most {report.largest_difference:.3%}, mean {report.mean_difference:.3%}"
    )
    _emit("bench loss", report, {"steps": steps, "data": data.name if data else None}, json_path, text)


def _check_json(json_path: str | None) -> None:
    if json_path not in (None, "-") and not Path(str(json_path)).absolute().parent.is_dir():
        raise InputError(f"cannot write {json_path}: its directory does not exist")


def _warn_if_busy() -> None:
    load = os.getloadavg()[0]
    if load > 0.5:
        click.echo(f"others are using this machine (load {load:.1f}): ratios hold, times do not", err=True)


def _threads(asked: int) -> int:
    available = len(os.sched_getaffinity(0))
    if asked > available:
        raise UsageError(f"--threads {asked} is above the {available} processors of this machine")
    return asked or available


def _length(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise UsageError(f"--seq-lens: {text!r} is not a number of tokens; write a list such as 256,512")
    return int(text)


def _emit(name: str, report: Any, settings: dict[str, Any], json_path: str | None, text: str) -> None:
    if json_path is not None:
        emit_json(record(name, report, settings), json_path)
    if json_path != "-":
        click.echo(text)
    sys.stdout.flush()


def _aligned(rows: Cells, n_text: int) -> list[str]:
    """Return the rows as lines, the first ``n_text`` columns to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < n_text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ratios(row: Row | Total, report: KernelsReport) -> tuple[str, ...]:
    """Return the cells that rows and totals share: rate, share of each roof, unpacking, ratio to each peer."""
    roofs = [_number(row.share_of_roof.get(name), ".0%") for name in report.roofs_gflop_per_s]
    peers = [_number(row.speedup.get(name), ".2f") for name in report.peers]
    return (_number(row.gflop_per_s, ",.0f"), *roofs, _number(row.unpack_share, ".1%"), *peers)


def _kernels_text(report: KernelsReport) -> str:
    shared = [*(f"of {name}" for name in report.roofs_gflop_per_s), "unpack", *(f"x {name}" for name in report.peers)]
    head = ("compute", "model", "what", "op", "shape", "ms", "spread", "GB/s", "GFLOP/s", *shared)
    rows: Cells = [head]
    for row in report.rows:
        cells = (row.compute, row.model, row.label, row.op, row.shape, f"{1e3 * row.time.median_s:.2f}")
        rows.append((*cells, f"{row.time.spread:.0%}", _number(row.gb_per_s, ".1f"), *_ratios(row, report)))
    totals: Cells = [("compute", "weighted by FLOPs", "GFLOP/s", *shared)]
    totals += [(total.compute, total.op, *_ratios(total, report)) for total in report.totals]
    roofs = ", ".join(f"{name} {rate:,.0f}" for name, rate in report.roofs_gflop_per_s.items())
    lines = [*_aligned(rows, 5), "", *_aligned(totals, 2), "", f"roofs, registers only, GFLOP/s: {roofs}"]
    return "\n".join(lines)


def _step_text(report: StepReport, decimal: bool) -> str:
    run = report.run

    def size(n_bytes: int | None) -> str:
        return format_bytes(n_bytes or 0, decimal)

    rows: Cells = [("step", "s", "spread", "peak", "of it", "memsim is faster by")]
    ours = (f"memsim {run.schedule} {run.compute}", f"{report.time.median_s:.2f}", f"{report.time.spread:.0%}")
    rows.append((*ours, size(run.peak_footprint_bytes), "footprint", ""))
    rows.append(("", "", "", size(run.peak_rss_bytes), "RSS", ""))
    for peer in report.peers:
        cells = (peer.name, f"{peer.time.median_s:.2f}", f"{peer.time.spread:.0%}", size(peer.peak_rss_bytes), "RSS")
        rows.append((*cells, f"{peer.speedup:.2f} x"))
    roofs = ", ".join(
        f"{report.times_the_roof[name]:.2f} times the {name} roof of {rate:,.0f} GFLOP/s"
        for name, rate in report.roofs_gflop_per_s.items()
        if name in report.times_the_roof
    )
    work = f"{run.model}, seq {run.seq_len}: {report.flops / 1e9:,.0f} GFLOP a step, {roofs}"
    without = [] if report.peers else ["no peers: install the extra `torch`"]
    return "\n".join([*_aligned(rows, 1), work, *without])


def _footprint_text(runs: list[Result], decimal: bool) -> str:
    rows: Cells = [("model", "schedule", "seq", "peak footprint", "baseline", "working set", "planned", "step s")]
    for run in runs:
        sizes = (
            run.peak_footprint_bytes,
            run.baseline_footprint_bytes,
            run.peak_working_set_bytes,
            run.planned_footprint_bytes,
        )
        cells = (run.model, f"{run.schedule} {run.compute}", str(run.seq_len))
        rows.append((*cells, *(format_bytes(size or 0, decimal) for size in sizes), f"{run.step_s:.2f}"))
    lines = _aligned(rows, 2)
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        first, last = min(own, key=lambda run: run.seq_len or 0), max(own, key=lambda run: run.seq_len or 0)
        if first is not last:
            growth = format_bytes((last.peak_footprint_bytes or 0) - (first.peak_footprint_bytes or 0), decimal)
            lines.append(f"{model}: {growth} more from seq {first.seq_len} to {last.seq_len}")
    return "\n".join(lines)
