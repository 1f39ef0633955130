"""Every schedule by its name, and what each lowers a step to."""

from memsim.errors import UsageError
from memsim.ir.program import Program
from memsim.models.graph import ModelGraph
from memsim.schedules.choices import SCHEDULES, Choices
from memsim.schedules.lowering import lower
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import METHODS, ZeroOrder, estimator
from memsim.schedules.zeroth_order_lowering import lower_zeroth_order, zeroth_order_choices

SCHEDULE_NAMES: tuple[str, ...] = (*SCHEDULES, *METHODS)


def lower_schedule(
    schedule: str, graph: ModelGraph, optimizer: OptimizerConfig, zeroth_order: ZeroOrder, balloon_bytes: int = 0
) -> tuple[Program, Choices]:
    """Return the step program of a named schedule, and the choices that its evaluation shares.

    Raises:
        UsageError: No such schedule, or a setting that it cannot have.
    """
    n_blocks = graph.config.num_hidden_layers
    if schedule in METHODS:
        decided = estimator(schedule, zeroth_order, optimizer.lr, graph.accumulate)
        return lower_zeroth_order(graph, decided, balloon_bytes), zeroth_order_choices(n_blocks, decided)
    if schedule not in SCHEDULES:
        raise UsageError(f"no schedule called {schedule!r}; schedules: {', '.join(SCHEDULE_NAMES)}")
    choices = SCHEDULES[schedule](n_blocks, graph.residuals)
    return lower(graph, choices, optimizer, balloon_bytes), choices


def updates_by(schedule: str, optimizer: OptimizerConfig) -> str:
    """Return the name of the optimizer that a schedule ends its step with."""
    return METHODS[schedule].optimizer if schedule in METHODS else optimizer.name
