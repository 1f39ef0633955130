"""``memsim simulate``: a step program on a device that is not here."""

import sys
from typing import Any

import click

from memsim.api.simulation import simulate
from memsim.cli.json_option import json_option
from memsim.cli.options import NO_WEIGHTS, device_option, model_option, number_option, schedule_option, updates_options
from memsim.cli.predicting.verdict import killed, summary
from memsim.cli.say import say
from memsim.cli.scheme_options import chosen_scheme, scheme_options_without_task
from memsim.errors import LimitError
from memsim.result_file import emit_json
from memsim.schedules.names import SCHEDULE_NAMES
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.simulate import MODES, Mode
from memsim.units import is_decimal, parse_bytes


@click.command(name="simulate", context_settings={"show_default": True})
@model_option(NO_WEIGHTS)
@schedule_option(SCHEDULE_NAMES, "mebp", "What a step keeps, spills and recomputes.")
@device_option()
@click.option("--budget", metavar="SIZE", help="A limit below the device's: 1GB, 512MiB.  [default: the device's]")
@click.option("--mode", type=click.Choice(list(MODES)), default="foreground", help="How the app runs: its limit.")
@number_option("--seq-len", 256, "Tokens in a sequence.", metavar="TOKENS")
@number_option("--steps", 20, "Optimizer steps in a row: the device gets hot.")
@scheme_options_without_task
@updates_options
@click.option(
    "--paging",
    type=click.Choice(["advised", "faults"]),
    default="advised",
    help="Whether a page-in asks for its file in advance, as memsim's runtime does, or faults its way through.",
)
@json_option("the result record")
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
    simulated = simulate(
        model,
        schedule=schedule,
        device=device,
        budget_bytes=parse_bytes(budget) if budget is not None else None,
        mode=mode,
        seq_len=seq_len,
        steps=steps,
        scheme=chosen_scheme(scheme),
        optimizer=OptimizerConfig(optimizer),
        accumulate=accumulate,
        advised=paging == "advised",
    )
    if json_path is not None:
        emit_json(simulated.result, json_path)
    decimal = budget is None or is_decimal(budget)
    if json_path != "-":
        plan = simulated.plan
        peak = plan.memory.peak_node
        where = f"node {peak} ({plan.program.nodes[peak]})"
        told = "no interpreter; what is touched stays"
        say(*summary(simulated.result, simulated.simulation, mode, decimal, where, told))
    if not simulated.fits:
        complaint = killed(
            simulated.simulation.survival[mode], simulated.held_where_killed(), simulated.result.schedule or "", decimal
        )
        say(f"memsim: {complaint}", err=True)
        sys.exit(LimitError.exit_code)
