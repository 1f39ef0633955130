"""``memsim simulate``: a step program on a device that is not here."""

import sys
from collections.abc import Mapping

import click

from memsim.errors import LimitError, UsageError
from memsim.models.lora import ALL_PROJECTIONS, LoraConfig, check_lora, with_our_names
from memsim.models.presets import PRESETS
from memsim.planner.plan import held_at
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.results import Band, Result, emit_json
from memsim.schedules.catalog import SCHEDULE_NAMES
from memsim.schedules.optimizers import STATE_PER_PARAMETER, OptimizerConfig
from memsim.simulator.device import Device
from memsim.simulator.device_file import find_device
from memsim.simulator.record import simulated_result
from memsim.simulator.simulate import MODES, Mode, Simulation, simulate
from memsim.simulator.trace import trace_program
from memsim.units import format_bytes, is_decimal, parse_bytes
from memsim.weights.dimensions import find_dimensions

_MAX_STEPS = 100_000


@click.command(name="simulate", context_settings={"show_default": True})
@click.option(
    "--model",
    default="qwen2.5-0.5b",
    metavar="NAME|DIR",
    help=f"A preset ({', '.join(PRESETS)}), a pack, or a directory with a config.json; no weights are read.",
)
@click.option(
    "--schedule", type=click.Choice(SCHEDULE_NAMES), default="mebp", help="What a step keeps, spills and recomputes."
)
@click.option("--device", default="iphone-15-pro-max", metavar="NAME|FILE", help="See `memsim devices`.")
@click.option("--budget", metavar="SIZE", help="A limit below the device's: 1GB, 512MiB.  [default: the device's]")
@click.option("--mode", type=click.Choice(list(MODES)), default="foreground", help="How the app runs: its limit.")
@click.option("--seq-len", type=int, default=256, metavar="TOKENS", help="Tokens in a sequence.")
@click.option("--steps", type=int, default=20, metavar="N", help="Optimizer steps in a row: the device gets hot.")
@click.option("--lora-rank", type=int, default=8, metavar="R", help="Rank of the adapters.")
@click.option(
    "--target-modules",
    default=",".join(ALL_PROJECTIONS),
    metavar="LIST",
    help="Projections with an adapter; a family's own names (query, fc1) will do.",
)
@click.option(
    "--optimizer", type=click.Choice(list(STATE_PER_PARAMETER)), default="adamw", help="What updates the adapters."
)
@click.option("--accumulate", type=int, default=1, metavar="N", help="Sequences whose gradients are summed in a step.")
@click.option(
    "--paging",
    type=click.Choice(["advised", "faults"]),
    default="advised",
    help="Whether a page-in asks for its file in advance, as memsim's runtime does, or faults its way through.",
)
@click.option("--json", "json_path", metavar="PATH|-", help="Write the result record to PATH, or to stdout.")
def command(
    model: str,
    schedule: str,
    device: str,
    budget: str | None,
    mode: Mode,
    seq_len: int,
    steps: int,
    lora_rank: int,
    target_modules: str,
    optimizer: str,
    accumulate: int,
    paging: str,
    json_path: str | None,
) -> None:
    """Simulate a fine-tuning run on a phone or another device: would it survive, how long is a step.

    Nothing runs: the step program is walked with the device's rates. Every figure is given with the device's numbers at
    their nominal and, in brackets, with all of them at their worst and best at once. Exit code 3: killed.
    """
    budget_bytes = parse_bytes(budget) if budget else None
    for option, value, most in (("--seq-len", seq_len, 1 << 20), ("--steps", steps, _MAX_STEPS)):
        if not 1 <= value <= most:
            raise UsageError(f"{option} {value} must be from 1 to {most}")
    if not 1 <= accumulate <= 1024:
        raise UsageError(f"--accumulate {accumulate} must be from 1 to 1024")
    if budget_bytes == 0:
        raise UsageError("--budget 0 cannot hold a process; write a size such as 1GB")
    target = find_device(device)
    lora = LoraConfig(lora_rank, target_modules=tuple(name for name in target_modules.split(",") if name))
    name, setup = _setup(model, schedule, seq_len, lora, OptimizerConfig(optimizer), accumulate, target)
    plan = plan_run(setup, "")
    trace = trace_program(plan.train.program, plan.memory)
    simulation = simulate(trace, target, steps, budget_bytes, paging == "advised")
    result = simulated_result("simulate", name, setup, plan, simulation, mode, budget_bytes)
    if json_path is not None:
        emit_json(result, json_path)
    decimal = budget is None or is_decimal(budget)
    if json_path != "-":
        click.echo(_summary(result, plan, simulation, mode, decimal))
    if not result.fits:
        click.echo(f"memsim: {_killed(plan, simulation, mode, decimal)}", err=True)
        sys.exit(LimitError.exit_code)


def _setup(
    model: str,
    schedule: str,
    seq_len: int,
    lora: LoraConfig,
    optimizer: OptimizerConfig,
    accumulate: int,
    device: Device,
) -> tuple[str, TrainingSetup]:
    config, group_size, name = find_dimensions(model)
    lora = with_our_names(lora, config)
    check_lora(lora, config)
    if seq_len > config.longest_sequence:
        raise UsageError(f"--seq-len {seq_len} is above the model's max_position_embeddings, {config.longest_sequence}")
    threads = max(1, int(device.at("nominal").threads))
    setup = TrainingSetup(config, group_size, lora, schedule, seq_len, optimizer, accumulate, threads)
    return name, setup


def _killed(plan: RunPlan, simulation: Simulation, mode: Mode, decimal: bool) -> str:
    """Say where the limit is broken, by how much, by what, and what to do."""
    survival = simulation.survival[mode]
    node = survival.killed_at
    if node is None:
        raise ValueError("the run survives")
    held = held_at(plan.train.program, node.index)[:3]
    largest = ", ".join(f"{name} {format_bytes(n_bytes, decimal)}" for name, n_bytes in held)
    over, limit = (format_bytes(n_bytes, decimal) for n_bytes in (-survival.margin_bytes, survival.limit.nominal))
    return (
        f"killed at node {node.index} ({node}) with {largest}; the peak is {over} over the {mode} limit of {limit}. "
        f"Use --schedule tiled, shorten --seq-len, or raise the limit"
    )


def _summary(result: Result, plan: RunPlan, simulation: Simulation, mode: Mode, decimal: bool) -> str:
    """Return the simulation for people."""
    figures, survival = simulation.figures, simulation.survival[mode]

    def size(n_bytes: float) -> str:
        return format_bytes(n_bytes, decimal)

    def sizes(band: Band) -> str:
        return f"{size(band.nominal)} ({size(band.low)} to {size(band.high)})"

    def seconds(name: str) -> str:
        band = figures[name]
        return f"{band.nominal:.2f} s ({band.low:.2f} to {band.high:.2f})"

    margin = survival.margin_bytes
    spare = f"{size(abs(margin))} {'to spare' if margin >= 0 else 'too much'}"
    peak = plan.memory.peak_node
    held = ", ".join(f"{name} {size(n)}" for name, n in list(result.peak_by_value.items())[:3])
    rows = [
        ("model", f"{result.model}, {result.schedule}, seq {result.seq_len}, LoRA rank {result.lora_rank}"),
        ("device", simulation.device.title),
        ("verdict", f"{survival.verdict} under {size(survival.limit.nominal)}, {mode}: {spare}"),
        ("peak footprint", sizes(figures["peak_footprint_bytes"])),
        ("  app baseline", sizes(figures["app_baseline_bytes"])),
        ("  working set", f"{size(result.peak_working_set_bytes or 0)}, no interpreter; what is touched stays"),
        ("  held by", f"{held} at node {peak} ({plan.program.nodes[peak]})"),
        *((f"limit {name}", f"{sizes(s.limit)}: {s.verdict}") for name, s in simulation.survival.items()),
        ("step", f"{seconds('step_s')}, median of {len(result.steps)}"),
        ("  cold", f"{seconds('cold_step_s')}, the first one: no file page in memory"),
        ("  warm", seconds("warm_step_s")),
        ("  hot", f"{seconds('hot_step_s')}, warm and at the thermal floor"),
        *(
            (f"  {label}", f"{seconds(f'{name}_s')} of the warm one")
            for label, name in (
                ("compute", "compute"),
                ("unpack", "unpack"),
                ("page-in", "page_in"),
                ("spill", "spill"),
            )
        ),
        ("energy", "{0.nominal:.1f} J ({0.low:.1f} to {0.high:.1f}) a step".format(figures["energy_j"])),
        ("flash", _wear(figures, decimal)),
    ]
    return "\n".join(f"{name:<18}{text}" for name, text in rows)


def _wear(figures: Mapping[str, Band], decimal: bool) -> str:
    """Say what a step reads and writes, and how much of the day's writes a day of steps takes."""
    read, written = figures["warm_read_bytes"].nominal, figures["written_bytes"].nominal
    text = f"{format_bytes(read, decimal)} read and {format_bytes(written, decimal)} written a step"
    if not written:
        return text
    by_writes, by_time = figures["steps_per_day_by_writes"].nominal, figures["steps_per_day_by_time"].nominal
    return f"{text}; the day's write budget is {by_writes:,.0f} steps, the day has time for {by_time:,.0f}"
