"""``memsim simulate``: a step program on a device that is not here."""

import sys
from typing import Any

import click

from memsim.cli.scheme import chosen_scheme, scheme_options_without_task
from memsim.cli.verdict import killed, summary
from memsim.errors import LimitError, UsageError
from memsim.models.config import ModelConfig
from memsim.models.lora import LoraConfig, with_our_names
from memsim.models.presets import PRESETS
from memsim.models.scheme import Scheme, check_length
from memsim.planner.plan import held_at
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.results import emit_json
from memsim.schedules.catalog import SCHEDULE_NAMES
from memsim.schedules.optimizers import STATE_PER_PARAMETER, OptimizerConfig
from memsim.simulator.device import Device
from memsim.simulator.device_file import find_device
from memsim.simulator.record import simulated_result
from memsim.simulator.simulate import MODES, Mode, simulate
from memsim.simulator.trace import trace_program
from memsim.units import is_decimal, parse_bytes
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
@scheme_options_without_task
@click.option(
    "--optimizer", type=click.Choice(list(STATE_PER_PARAMETER)), default="adamw", help="What updates what is trained."
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
    optimizer: str,
    accumulate: int,
    paging: str,
    json_path: str | None,
    **scheme: Any,
) -> None:
    """Simulate a fine-tuning run on a phone or another device: would it survive, how long is a step.

    Nothing runs: the step program is walked with the device's rates. Every figure is given with the device's numbers at
    their nominal and, in brackets, with all of them at their worst and best at once. Exit code 3: killed.
    """
    budget_bytes = parse_bytes(budget) if budget else None
    for option, value, most in (("--seq-len", seq_len, 1 << 20), ("--steps", steps, _MAX_STEPS)):
        if not 1 <= value <= most:
            raise UsageError(f"{option} {value} must be from 1 to {most}")
    if budget_bytes == 0:
        raise UsageError("--budget 0 cannot hold a process; write a size such as 1GB")
    target = find_device(device)
    trained = chosen_scheme(scheme)
    name, setup = _setup(model, schedule, seq_len, trained, OptimizerConfig(optimizer), accumulate, target)
    plan = plan_run(setup, "")
    trace = trace_program(plan.train.program, plan.memory)
    simulation = simulate(trace, target, steps, budget_bytes, paging == "advised")
    result = simulated_result("simulate", name, setup, plan, simulation, mode, budget_bytes)
    if json_path is not None:
        emit_json(result, json_path)
    decimal = budget is None or is_decimal(budget)
    if json_path != "-":
        peak = plan.memory.peak_node
        where = f"node {peak} ({plan.program.nodes[peak]})"
        click.echo(summary(result, simulation, mode, decimal, where, "no interpreter; what is touched stays"))
    if (node := simulation.survival[mode].killed_at) is not None:
        held = held_at(plan.train.program, node.index)
        click.echo(f"memsim: {killed(simulation.survival[mode], held, decimal)}", err=True)
        sys.exit(LimitError.exit_code)


def _setup(
    model: str,
    schedule: str,
    seq_len: int,
    scheme: Scheme,
    optimizer: OptimizerConfig,
    accumulate: int,
    device: Device,
) -> tuple[str, TrainingSetup]:
    config, group_size, name = find_dimensions(model)
    threads = max(1, int(device.at("nominal").threads))
    return name, training_setup(config, group_size, schedule, seq_len, scheme, optimizer, accumulate, threads)


def training_setup(
    config: ModelConfig,
    group_size: int,
    schedule: str,
    seq_len: int,
    scheme: Scheme,
    optimizer: OptimizerConfig,
    accumulate: int,
    threads: int,
) -> TrainingSetup:
    """Return what to plan, checked against the model.

    Raises:
        UsageError: A scheme, a length or a count that cannot be.
    """
    if isinstance(scheme, LoraConfig):
        scheme = with_our_names(scheme, config)
    scheme.check(config)
    if not 1 <= accumulate <= 1024:
        raise UsageError(f"--accumulate {accumulate} must be from 1 to 1024")
    if seq_len < 1:
        raise UsageError(f"--seq-len {seq_len} is below 1")
    check_length(scheme, config, seq_len)
    return TrainingSetup(config, group_size, scheme, schedule, seq_len, optimizer, accumulate, threads)
