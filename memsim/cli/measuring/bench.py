"""``memsim bench``: kernels, whole steps, footprints and losses, measured against roofs and peers."""

import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from memsim.bench.kernels import KernelsConfig, bench_kernels
from memsim.bench.record import record
from memsim.bench.runs import compare_losses, footprints
from memsim.bench.step import bench_step
from memsim.bench.zeroth_order import bench_zo
from memsim.cap.processors import available_threads
from memsim.cli.json_option import json_option
from memsim.cli.measuring.bench_text import footprint_text, kernels_text, step_text, zo_text
from memsim.cli.options import (
    compute_option,
    device_option,
    model_option,
    models_option,
    number_option,
    path_option,
    schedule_option,
)
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.errors import UsageError
from memsim.models.presets import PRESETS
from memsim.result_file import emit_json
from memsim.runtime.config import RunConfig
from memsim.schedules.names import AUTO, SCHEDULE_NAMES
from memsim.simulator.device_file import find_device
from memsim.units import is_decimal, parse_bytes

_MODEL = model_option("A preset, a pack or a directory.")
_SCHEDULE = schedule_option([*SCHEDULE_NAMES, AUTO], "tiled", "What a step keeps and recomputes.")
_SEQ_LEN = number_option("--seq-len", 256, "Tokens a sequence.", least=1, metavar="TOKENS")
_BUDGET = click.option("--budget", default="1GB", metavar="SIZE", help="Cap of each run.")
_THREADS = number_option("--threads", 0, "Of every contestant; 0 takes every processor.", least=0)
_COMPUTE = compute_option("Compute path; auto: the faster.")
_JSON = json_option("the record")


@click.group(name="bench")
def command() -> None:
    """Time kernels and whole steps beside this machine's measured roofs and what people run today.

    Contestants are processes of their own and take turns, so that noise hits all alike. Torch's figures need the
    extra `torch`. Leave the machine idle.
    """


@command.command(name="kernels", context_settings={"show_default": True})
@models_option("Presets whose shapes are timed.", "qwen2.5-0.5b,qwen2.5-3b")
@click.option("--rows", "--seq-len", type=click.IntRange(1), default=256, metavar="TOKENS", help="M of the products.")
@click.option(
    "--compute", type=click.Choice(["all", "f32", "bf16"]), default="all", help="Compute paths of packed products."
)
@number_option("--rounds", 5, "Turns of each contestant at a row.", least=1)
@number_option("--repeats", 3, "Timed calls a turn.", least=1)
@click.option("--quick", is_flag=True, help="Only the products of a block, two rounds.")
@_THREADS
@_JSON
def kernels_command(
    models: str, rows: int, compute: str, rounds: int, repeats: int, quick: bool, threads: int, json_path: str | None
) -> None:
    """Verify every kernel against float64, then time it: GFLOP/s, share of the roof, unpacking, ratios to peers.

    Roofs are loops over registers. A wrong kernel ends the command with exit code 1 before anything is timed.
    """
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
    _emit("bench kernels", report, asdict(config), json_path, kernels_text(report))


@command.command(name="step", context_settings={"show_default": True})
@_MODEL
@_SCHEDULE
@_SEQ_LEN
@number_option("--steps", 2, "Timed steps a round.", least=1)
@number_option("--rounds", 3, "Turns of each contestant.", least=1)
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
    config = _step_config(model, schedule, seq_len, steps, compute, budget, threads, json_path)
    report = bench_step(config, rounds, stage)
    _emit("bench step", report, {"steps": steps, "rounds": rounds}, json_path, step_text(report, is_decimal(budget)))


@command.command(name="zo", context_settings={"show_default": True})
@_MODEL
@_SEQ_LEN
@number_option("--steps", 2, "Timed steps a round.", least=1)
@number_option("--rounds", 3, "Turns of each contestant.", least=1)
@device_option("Simulated; see `memsim devices`.")
@_COMPUTE
@_BUDGET
@_THREADS
@_JSON
def zo_command(
    model: str, seq_len: int, steps: int, rounds: int, device: str, compute: str, budget: str, threads: int,
    json_path: str | None,
) -> None:  # fmt: skip
    """Time MeZO with its forwards in one stream of the weights beside one stream each, and beside transformers.

    Each with the weights in the page cache, and again with every part dropped from it at each eviction, so that every
    forward reads the disk. Footprints are beside that of the schedule tiled, and the cold steps are simulated on
    --device. The peers, transformers with PEFT, move the adapters in place around two forwards, in f32 and in bf16, as
    MeZO's own code does. Another zeroth-order method beside them: `memsim bench step --schedule fzoo`.
    """
    target = find_device(device)
    config = _step_config(model, "mezo", seq_len, steps, compute, budget, threads, json_path)
    report = bench_zo(config, rounds, target, stage)
    _emit("bench zo", report, {"steps": steps, "rounds": rounds}, json_path, zo_text(report, is_decimal(budget)))


def _step_config(
    model: str, schedule: str, seq_len: int, steps: int, compute: str, budget: str, threads: int,
    json_path: str | None,
) -> RunConfig:  # fmt: skip
    config = _config(model, schedule, seq_len, steps, compute, budget, threads)
    _warn_if_busy()
    return config


def _config(model: str, schedule: str, seq_len: int, steps: int, compute: str, budget: str, threads: int) -> RunConfig:
    return RunConfig(
        budget_bytes=parse_bytes(budget),
        model=model,
        schedule=schedule,
        seq_len=seq_len,
        steps=steps,
        compute=compute,
        threads=_threads(threads),
    )


@command.command(name="footprint", context_settings={"show_default": True})
@models_option("Presets, packs or directories.", "qwen2.5-0.5b")
@click.option("--seq-lens", default="256,512,1024,2048", metavar="LIST", help="Tokens a sequence.")
@number_option("--steps", 2, "Steps of each run.", least=1)
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
    lengths = [_length(text) for text in seq_lens.split(",")]
    configs = [
        _config(model, schedule, seq_len, steps, compute, budget, threads)
        for model in models.split(",")
        for seq_len in lengths
    ]
    runs = footprints(configs, stage)
    plain = {"runs": [asdict(run) for run in runs]}
    _emit("bench footprint", plain, {"steps": steps}, json_path, footprint_text(runs, is_decimal(budget)))


@command.command(name="loss", context_settings={"show_default": True})
@path_option("--data", "Text.  [default: CPython's documentation]")
@_MODEL
@_SCHEDULE
@_SEQ_LEN
@number_option("--steps", 50, "Optimizer steps.", least=1)
@_BUDGET
@_THREADS
@_JSON
def loss_command(
    data: Path | None, model: str, schedule: str, seq_len: int, steps: int, budget: str, threads: int,
    json_path: str | None,
) -> None:  # fmt: skip
    """Train twice on the same text, in f32 and in bf16, and compare the losses step by step."""
    f32, bf16 = (
        replace(_config(model, schedule, seq_len, steps, compute, budget, threads), data=data)
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


def _warn_if_busy() -> None:
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"others are using this machine (load {load:.1f}): ratios hold, times do not", err=True)


def _threads(asked: int) -> int:
    available = available_threads()
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
        say(*text.split("\n"))
    sys.stdout.flush()
