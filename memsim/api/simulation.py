"""``memsim.simulate``: a step program on a device that is not here."""

from dataclasses import dataclass

from memsim.errors import UsageError
from memsim.models.config import ModelConfig
from memsim.models.lora import LoraConfig, with_our_names
from memsim.models.matrix_formats import Packing
from memsim.models.scheme import Scheme, check_length, with_classifier
from memsim.planner.plan import held_at
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.results import Result
from memsim.runtime.settings import SETTING
from memsim.schedules.catalog import check_scheme
from memsim.schedules.names import SCHEDULE_NAMES
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.device_file import find_device
from memsim.simulator.modes import MODES, Mode
from memsim.simulator.record import simulated_result
from memsim.simulator.simulate import Simulation
from memsim.simulator.simulate import simulate as simulate_trace
from memsim.simulator.trace import trace_program
from memsim.weights.dimensions import find_dimensions

MAX_STEPS = 100_000


class Survives:
    """What was simulated for an app that runs in one ``mode``."""

    __slots__ = ()
    simulation: Simulation
    mode: Mode

    @property
    def fits(self) -> bool:
        """Whether the app survives by the nominal numbers."""
        return self.simulation.survival[self.mode].killed_at is None


@dataclass(frozen=True, slots=True)
class Simulated(Survives):
    """A simulated fine-tuning run.

    Attributes:
        result: Its record, as ``memsim simulate --json`` writes it; bytes and seconds by the device's nominal numbers.
        simulation: The same with bands, for every limit and node.
        plan: The step program and its memory.
        mode: How the app runs, which decides the limit.
    """

    result: Result
    simulation: Simulation
    plan: RunPlan
    mode: Mode

    def held_where_killed(self) -> tuple[tuple[str, int], ...]:
        """Return the values that are live at the node that breaks the limit, and their bytes; none if it fits."""
        node = self.simulation.survival[self.mode].killed_at
        return tuple(held_at(self.plan.train.program, node.index)) if node else ()


def simulate(
    model: str = "qwen2.5-0.5b",
    *,
    schedule: str = "mebp",
    device: str = "iphone-15-pro-max",
    budget_bytes: int | None = None,
    mode: Mode = "foreground",
    seq_len: int = 256,
    steps: int = 20,
    scheme: Scheme | None = None,
    optimizer: OptimizerConfig | None = None,
    accumulate: int = 1,
    advised: bool = True,
) -> Simulated:
    """Simulate a fine-tuning run on a device; nothing is executed and no weight is read.

    Args:
        model: A preset, a pack, or a directory with a ``config.json``.
        schedule: What a step keeps, spills and recomputes.
        device: The name of a device, or the path of a device file.
        budget_bytes: A limit below the device's; None takes the device's.
        mode: How the app runs: its limit.
        seq_len: Tokens in a sequence.
        steps: Optimizer steps in a row, in which the device gets hot.
        scheme: What is trained, such as a ``LoraConfig``; None is LoRA of rank 8 on every projection.
        optimizer: What updates it; None is AdamW.
        accumulate: Sequences whose gradients are summed in a step.
        advised: Whether a page-in asks for its file in advance, as memsim's runtime does, or faults its way through.

    Raises:
        UsageError: A value that can never work, or does not fit the model.
        InputError: The model or the device cannot be read.
    """
    SETTING["seq_len"].check(seq_len)
    if not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"--steps {steps} must be from 1 to {MAX_STEPS}")
    check_limits(budget_bytes, mode)
    if schedule not in SCHEDULE_NAMES:
        raise UsageError(f"no schedule {schedule!r}; choose from {', '.join(SCHEDULE_NAMES)}")
    target = find_device(device)
    config, packing, name = find_dimensions(model)
    threads = max(1, int(target.at("nominal").threads))
    setup = training_setup(config, packing, schedule, seq_len, scheme, optimizer, accumulate, threads)
    plan = plan_run(setup, "")
    trace = trace_program(plan.train.program, plan.memory)
    simulation = simulate_trace(trace, target, steps, budget_bytes, advised)
    result = simulated_result("simulate", name, setup, plan, simulation, mode, budget_bytes)
    return Simulated(result, simulation, plan, mode)


def check_limits(budget_bytes: int | None, mode: str) -> None:
    """Check how a simulated app is limited.

    Raises:
        UsageError: A budget of nothing, or no such mode.
    """
    if budget_bytes is not None and budget_bytes <= 0:
        raise UsageError(f"--budget {budget_bytes} cannot hold a process; write a size such as 1GB")
    if mode not in MODES:
        raise UsageError(f"no mode {mode!r}; choose from {', '.join(MODES)}")


def training_setup(
    config: ModelConfig,
    packing: Packing,
    schedule: str,
    seq_len: int,
    scheme: Scheme | None,
    optimizer: OptimizerConfig | None,
    accumulate: int,
    threads: int,
) -> TrainingSetup:
    """Return what to plan, checked against the model.

    Raises:
        UsageError: A scheme, a length or a count that cannot be.
    """
    scheme = scheme or LoraConfig()
    if isinstance(scheme, LoraConfig):
        scheme = with_our_names(scheme, config)
    scheme.check(config)
    check_scheme(schedule, scheme)
    if scheme.labels and config.family.causal and scheme.name != "head":
        raise UsageError(f"--labels belongs to --scheme head, not to {scheme.name}, unless the model is RoBERTa")
    SETTING["accumulate"].check(accumulate)
    SETTING["seq_len"].check(seq_len)
    check_length(scheme, config, seq_len)
    config = with_classifier(config, scheme)
    return TrainingSetup(
        config, packing, scheme, schedule, seq_len, optimizer or OptimizerConfig(), accumulate, threads
    )
