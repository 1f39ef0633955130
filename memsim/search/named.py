"""The named schedules beside a search: their exact plans, whatever the rates.

What the search leaves out because something beats it by the rates may be what fits where nothing else does, or what is
as fast by less: peaks do not depend on rates. So the named schedules stand beside what is found.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite

from memsim.errors import InputError
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.schedules.choices import SCHEDULES
from memsim.search.probe import node_seconds
from memsim.simulator.device import UNITS, Numbers, Rule

NAMED = tuple(name for name in SCHEDULES if name != "lcsb")
"""Those that compute the same as any other; `lcsb` computes something else in the same memory."""

_LONGEST_S = 1e5
"""Whole picoseconds of a step that is some times as long still fit 64 bits."""


def planned_by_name(
    setup: TrainingSetup, numbers: Numbers, rule: Rule, model_hash: str
) -> Iterator[tuple[str, RunPlan, float]]:
    """Yield each named schedule with its plan and its seconds of a step that finds the weights in memory.

    Raises:
        InputError: The rates are so low that a step has no end.
    """
    for name in NAMED:
        plan = plan_run(replace(setup, schedule=name, choices=None), model_hash)
        seconds = sum(node_seconds(plan.train.program, numbers, rule).tolist())  # without NumPy's warnings of overflow
        if not isfinite(seconds):
            raise InputError(f"by the device's rates a step of {name} has no end; see `memsim devices show` for rates")
        yield name, plan, seconds


def in_range(numbers: Numbers, slowest_s: float) -> tuple[Numbers, float]:
    """Return the numbers of a device that is faster by a factor, and the factor: 1 but for very slow ones.

    Args:
        numbers: Of the device.
        slowest_s: What a step takes at most.
    """
    factor = max(1.0, slowest_s / _LONGEST_S)
    changed = {
        name: value * factor if UNITS[name].endswith("/s") else value / factor if UNITS[name] == "s" else value
        for name, value in ((name, getattr(numbers, name)) for name in UNITS)
    }
    return (Numbers(**changed) if factor > 1 else numbers), factor
