"""Every schedule by its name, and what each lowers a step to."""

from dataclasses import replace

from memsim.errors import UsageError
from memsim.ir.program import Program
from memsim.models.graph import ModelGraph
from memsim.models.scheme import Scheme
from memsim.schedules.blockwise_lowering import BlockwiseLowering
from memsim.schedules.choices import SCHEDULES, Choices
from memsim.schedules.forward_gradient_lowering import ForwardGradientLowering
from memsim.schedules.full_lowering import FullLowering, full_choices, lower_full_evaluation
from memsim.schedules.hybrid_lowering import HybridLowering
from memsim.schedules.lowering import lower, lower_evaluation
from memsim.schedules.names import SCHEDULE_NAMES
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import METHODS, Estimator, ZeroOrder, estimator, for_scheme
from memsim.schedules.zeroth_order_lowering import ZeroOrderLowering, zeroth_order_choices


def lower_schedule(
    schedule: str,
    graph: ModelGraph,
    optimizer: OptimizerConfig,
    zeroth_order: ZeroOrder,
    lcsb_groups: int | None = None,
    balloon_bytes: int = 0,
) -> tuple[Program, Choices]:
    """Return the step program of a named schedule, and the choices that its evaluation shares.

    Raises:
        UsageError: No such schedule, or a setting that it cannot have.
    """
    n_blocks = graph.config.num_hidden_layers
    if schedule in METHODS:
        decided = for_scheme(estimator(schedule, zeroth_order, optimizer.lr, graph.accumulate), graph.scheme)
        program = _zeroth_order(graph, decided, optimizer).zeroth_order_step(balloon_bytes)
        choices = zeroth_order_choices(n_blocks, decided)
        return program, full_choices(choices) if graph.scheme.trains_matrices else choices
    check_scheme(schedule, graph.scheme)
    if schedule not in SCHEDULES:
        raise UsageError(f"no schedule called {schedule!r}; schedules: {', '.join(SCHEDULE_NAMES)}")
    choices = SCHEDULES[schedule](n_blocks, graph.residuals)
    if lcsb_groups is not None:
        if not 1 <= lcsb_groups <= n_blocks:
            raise UsageError(f"--lcsb-groups {lcsb_groups} must be 1 to {n_blocks}, the model's blocks")
        choices = replace(choices, groups=lcsb_groups)
    return lower(graph, choices, optimizer, balloon_bytes), choices


def check_scheme(schedule: str, scheme: Scheme) -> None:
    """Check that a schedule can train what ``scheme`` trains.

    Raises:
        UsageError: It differentiates, and the scheme trains every weight.
    """
    if scheme.trains_matrices and schedule not in METHODS:
        raise UsageError(
            f"--scheme {scheme.name} is trained by zeroth-order schedules only: {schedule} would hold a gradient of "
            f"every matrix; use --schedule mezo"
        )


def lower_evaluation_of(graph: ModelGraph, choices: Choices) -> Program:
    """Return the verified program of one evaluation batch under any scheme."""
    return (lower_full_evaluation if graph.scheme.trains_matrices else lower_evaluation)(graph, choices)


def lower_replay(graph: ModelGraph, decided: Estimator) -> Program:
    """Return the program of a step whose projected gradients are known, in the pinned value ``rho``: its updates."""
    return (FullLowering if graph.scheme.trains_matrices else ZeroOrderLowering)(graph, decided).replay()


def _zeroth_order(graph: ModelGraph, decided: Estimator, optimizer: OptimizerConfig) -> ZeroOrderLowering:
    if graph.scheme.trains_matrices:
        return FullLowering(graph, decided)
    if decided.method.blocks:
        return BlockwiseLowering(graph, decided)
    if decided.method.hybrid:
        return HybridLowering(graph, decided, optimizer)
    if decided.method.estimate == "jvp":
        return ForwardGradientLowering(graph, decided)
    return ZeroOrderLowering(graph, decided)


def updates_by(schedule: str, optimizer: OptimizerConfig) -> str:
    """Return the name of the optimizer that a schedule ends its step with."""
    brings_its_own = schedule in METHODS and not METHODS[schedule].hybrid
    return METHODS[schedule].optimizer if brings_its_own else optimizer.name
