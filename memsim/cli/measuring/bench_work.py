"""What ``memsim bench`` does once the options are read."""

import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from memsim.bench.kernels import KernelsConfig, bench_kernels
from memsim.bench.record import record
from memsim.bench.runs import compare_losses, footprints
from memsim.bench.step import bench_step
from memsim.bench.zeroth_order import bench_zo
from memsim.cap.processors import available_threads
from memsim.cli.measuring.bench_text import footprint_text, kernels_text, step_text, zo_text
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.errors import UsageError
from memsim.models.presets import PRESETS
from memsim.result_file import emit_json
from memsim.runtime.config import RunConfig
from memsim.simulator.device_file import find_device
from memsim.units import is_decimal, parse_bytes


def kernels_command(
    models: str, rows: int, compute: str, rounds: int, repeats: int, quick: bool, threads: int, json_path: str | None
) -> None:
    """Verify every kernel against float64, then time it: GFLOP/s, share of the roof, unpacking, ratios to peers."""
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


def step_command(
    model: str, schedule: str, seq_len: int, steps: int, rounds: int, compute: str, budget: str, threads: int,
    json_path: str | None,
) -> None:  # fmt: skip
    """Time whole capped steps beside the roof and beside transformers with PEFT on the same shapes."""
    config = _step_config(model, schedule, seq_len, steps, compute, budget, threads, json_path)
    report = bench_step(config, rounds, stage)
    _emit("bench step", report, {"steps": steps, "rounds": rounds}, json_path, step_text(report, is_decimal(budget)))


def zo_command(
    model: str, seq_len: int, steps: int, rounds: int, device: str, compute: str, budget: str, threads: int,
    json_path: str | None,
) -> None:  # fmt: skip
    """Time MeZO with its forwards in one stream of the weights beside one stream each, and beside transformers."""
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
