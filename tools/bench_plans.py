"""Hold plans to runs: random models, lengths, ranks and budgets, each planned, then really run under its budget.

    python tools/bench_plans.py [--points 40] [--seed 0] [--threads N] [--json PATH|-]

A point passes if its footprint never exceeds its budget, the prediction is within 3 % of the footprint, and that of the
working set within 5 % or 2 MB, whichever is more. Exit code 3 if one does not. Under 15 minutes on an idle machine.
"""

import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np

from memsim.bench.record import record
from memsim.errors import LimitError
from memsim.files import cache_dir
from memsim.models.lora import LoraConfig
from memsim.models.presets import preset
from memsim.planner.run_plan import TrainingSetup
from memsim.result_file import emit_json
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig
from memsim.runtime.prepare import prepare_kernels, worker_needs
from memsim.runtime.run_progress import RunProgress
from memsim.schedules.optimizers import STATE_PER_PARAMETER, OptimizerConfig
from memsim.search.plan_file import plan_for
from memsim.search.rates import rates_of
from memsim.search.search import PACKED, Search, search
from memsim.simulator.device_file import HOST
from memsim.weights.cache import DEFAULT_GROUP_SIZE, cached_synthetic
from memsim.weights.pack import Pack

MODELS = (
    ("qwen2.5-0.5b", 24),
    ("qwen2.5-0.5b", 6),
    ("qwen2.5-0.5b", 3),
    ("qwen3-0.6b", 5),
    ("gemma3-1b", 7),
    ("llama-3.2-1b", 3),
    ("opt-125m", 12),
)
"""Presets, and how many of their blocks: shapes are real, runs are short."""

LENGTHS = (32, 64, 100, 128, 192, 256, 384, 512)
RANKS = (1, 2, 4, 8, 16, 32)
STEPS = 2
FOOTPRINT_SHARE = 0.03
WORKING_SET_SHARE, WORKING_SET_BYTES = 0.05, 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One random setup, what was planned for it, and what it took.

    Attributes:
        need_bytes: The smallest budget for the plan.
        passes: Whether it kept its budget and both predictions hold.
    """

    model: str
    blocks: int
    seq_len: int
    lora_rank: int
    optimizer: str
    budget_bytes: int
    need_bytes: int
    planned_footprint_bytes: int
    footprint_bytes: int
    planned_working_set_bytes: int
    working_set_bytes: int
    planned_baseline_bytes: int
    baseline_bytes: int
    nodes: int
    predicted_s: float
    step_s: float
    passes: bool


@click.command(context_settings={"show_default": True})
@click.option("--points", type=click.IntRange(1), default=40, metavar="N", help="Random setups.")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Of the setups.")
@click.option("--threads", type=click.IntRange(1), default=2, metavar="N", help="Kernel threads.")
@click.option("--json", "json_path", metavar="PATH|-", help="Write the record to PATH, or to stdout.")
def main(points: int, seed: int, threads: int, json_path: str | None) -> None:
    """Plan and run random setups under random budgets, and hold the plans to the runs."""
    done = []
    for point in _points(points, seed, threads):
        done.append(point)
        click.echo(_line(point), err=json_path == "-")
    failed = sum(not point.passes for point in done)
    worst = max(abs(p.planned_footprint_bytes / p.footprint_bytes - 1) for p in done)
    furthest = max(abs(p.planned_working_set_bytes - p.working_set_bytes) for p in done)
    over = sum(p.footprint_bytes > p.budget_bytes for p in done)
    click.echo(
        f"{len(done)} points, {over} over their budget; footprint predicted within {worst:.1%}, working set within "
        f"{furthest / 1e6:.2f} MB; {failed} fail",
        err=json_path == "-",
    )
    if json_path is not None:
        report = {"points": [asdict(point) for point in done]}
        emit_json(record("bench plans", report, {"seed": seed, "threads": threads, "steps": STEPS}), json_path)
    sys.exit(LimitError.exit_code if failed else 0)


def _points(count: int, seed: int, threads: int) -> Iterator[Point]:
    generator = np.random.default_rng(seed)
    searches: dict[tuple[object, ...], Search] = {}
    for _ in range(count):
        name, blocks = MODELS[generator.integers(len(MODELS))]
        seq_len, rank = int(generator.choice(LENGTHS)), int(generator.choice(RANKS))
        optimizer = list(STATE_PER_PARAMETER)[generator.integers(len(STATE_PER_PARAMETER))]
        pack = _pack(name, blocks)
        setup = TrainingSetup(
            pack.config, pack.group_size, LoraConfig(rank), "auto", seq_len, OptimizerConfig(optimizer), threads=threads
        )
        key = (name, blocks, seq_len, rank, optimizer)
        if key not in searches:
            searches[key] = _search(setup, pack)
        yield _point(searches[key], pack, name, float(generator.random()))


def _pack(name: str, blocks: int) -> Pack:
    """Return synthetic weights of the preset with so many of its blocks."""
    whole = preset(name)
    types = whole.layer_types[:blocks] if whole.layer_types else None
    config = replace(whole, num_hidden_layers=blocks, layer_types=types)
    label = name if blocks == whole.num_hidden_layers else f"{name}-{blocks}"
    return cached_synthetic(label, config, DEFAULT_GROUP_SIZE, 0, lambda *_: None)


def _search(setup: TrainingSetup, pack: Pack) -> Search:
    device, _ = rates_of(HOST)
    kernels = prepare_kernels(setup.threads, lambda text: click.echo(text, err=True))
    needs = worker_needs(kernels.footprint_bytes[kernels.fastest])
    return search(setup, device.at("nominal"), device.rule, needs, PACKED, model_hash=pack.model_hash)


def _point(searched: Search, pack: Pack, name: str, place: float) -> Point:
    """Run the plan for a budget between the smallest that works (``place`` 0) and a little more than is of use (1)."""
    setup, low = searched.setup, searched.smallest().need_bytes
    lora = setup.scheme
    assert isinstance(lora, LoraConfig)  # as _points made it
    high = 1.1 * max(searched.candidates[-1].need_bytes, low)
    budget = int(low * (high / low) ** place)
    found = searched.fastest(budget)
    assert found is not None
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="plans-") as directory:
        config = RunConfig(
            budget_bytes=budget,
            model=str(pack.directory),
            schedule="auto",
            plan=plan_for(str(pack.directory), setup, found, HOST, budget),
            seq_len=setup.n_tokens,
            steps=STEPS,
            lora=lora,
            optimizer=setup.optimizer,
            threads=setup.threads,
            out=Path(directory) / "run",
        )
        outcome = run(config, RunProgress())
    result = outcome.result
    if result.exit_reason != "done" or result.step_s is None:
        raise click.ClickException(f"{name}, seq {setup.n_tokens}: {outcome.message}")
    footprint, working_set = result.peak_footprint_bytes or 0, result.peak_working_set_bytes or 0
    planned, planned_set = result.planned_footprint_bytes or 0, result.planned_working_set_bytes or 0
    return Point(
        model=name,
        blocks=setup.config.num_hidden_layers,
        seq_len=setup.n_tokens,
        lora_rank=lora.rank,
        optimizer=setup.optimizer.name,
        budget_bytes=budget,
        need_bytes=found.need_bytes,
        planned_footprint_bytes=planned,
        footprint_bytes=footprint,
        planned_working_set_bytes=planned_set,
        working_set_bytes=working_set,
        planned_baseline_bytes=planned - planned_set,
        baseline_bytes=result.baseline_footprint_bytes or 0,
        nodes=found.plan.n_nodes,
        predicted_s=found.time_s,
        step_s=result.step_s,
        passes=footprint <= budget
        and math.isclose(planned, footprint, rel_tol=0, abs_tol=FOOTPRINT_SHARE * footprint)
        and abs(planned_set - working_set) <= max(WORKING_SET_SHARE * working_set, WORKING_SET_BYTES),
    )


def _line(p: Point) -> str:
    def pair(measured: int, planned: int) -> str:
        return f"{measured / 1e6:7.1f} ({planned / 1e6:.1f})"

    return (
        f"{p.model:<13}{p.blocks:>3} seq {p.seq_len:<4} rank {p.lora_rank:<3}{p.optimizer:<9}"
        f"budget {pair(p.budget_bytes, p.need_bytes)} footprint {pair(p.footprint_bytes, p.planned_footprint_bytes)} "
        f"working set {pair(p.working_set_bytes, p.planned_working_set_bytes)} MB  step {p.step_s:.2f} s  "
        f"{'ok' if p.passes else 'FAILS'}"
    )


if __name__ == "__main__":
    main()
