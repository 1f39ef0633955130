"""What ``memsim simulate`` does once the options are read."""

import sys
from typing import Any

from memsim.api.simulation import simulate
from memsim.cli.predicting.verdict import killed, summary
from memsim.cli.say import say
from memsim.cli.scheme_options import chosen_scheme
from memsim.errors import LimitError
from memsim.result_file import emit_json
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.modes import Mode
from memsim.units import is_decimal, parse_bytes


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
    """Simulate a fine-tuning run on a phone or another device: would it survive, how long is a step."""
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
