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
from memsim.cli import complete
from memsim.cli.bench_text import footprint_text, kernels_text, step_text, zo_text
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.errors import InputError, UsageError
from memsim.models.presets import PRESETS
from memsim.result_file import emit_json
from memsim.runtime.run_config import RunConfig
from memsim.schedules.catalog import SCHEDULE_NAMES
from memsim.search.search import AUTO
from memsim.simulator.device_file import find_device
from memsim.units import is_decimal, parse_bytes

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
    _emit("bench kernels", report, asdict(config), json_path, kernels_text(report))


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
    config = _step_config(model, schedule, seq_len, steps, compute, budget, threads, json_path)
    report = bench_step(config, rounds, stage)
    _emit("bench step", report, {"steps": steps, "rounds": rounds}, json_path, step_text(report, is_decimal(budget)))


@command.command(name="zo", context_settings={"show_default": True})
@_MODEL
@_SEQ_LEN
@click.option("--steps", type=click.IntRange(1), default=2, metavar="N", help="Timed steps a round.")
@click.option("--rounds", type=click.IntRange(1), default=3, metavar="N", help="Turns of each contestant.")
@click.option(
    "--device",
    default="iphone-15-pro-max",
    metavar="NAME|FILE",
    shell_complete=complete.devices,
    help="Simulated; see `memsim devices`.",
)
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
    _check_json(json_path)
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
        _config(model, schedule, seq_len, steps, compute, budget, threads)
        for model in models.split(",")
        for seq_len in lengths
    ]
    runs = footprints(configs, stage)
    plain = {"runs": [asdict(run) for run in runs]}
    _emit("bench footprint", plain, {"steps": steps}, json_path, footprint_text(runs, is_decimal(budget)))


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


def _check_json(json_path: str | None) -> None:
    if json_path not in (None, "-") and not Path(str(json_path)).absolute().parent.is_dir():
        raise InputError(f"cannot write {json_path}: its directory does not exist")


def _warn_if_busy() -> None:
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"others are using this machine (load {load:.1f}): ratios hold, times do not", err=True)


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
        say(*text.split("\n"))
    sys.stdout.flush()
