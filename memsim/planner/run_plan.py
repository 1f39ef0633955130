"""Planning a run: its step programs lowered, placed and added up, before anything is allocated."""

from dataclasses import dataclass, field

from memsim.ir.program import Program
from memsim.ir.serialize import PlacedProgram
from memsim.models.config import ModelConfig
from memsim.models.graph import ModelGraph
from memsim.models.matrix_formats import Packing
from memsim.models.scheme import Scheme
from memsim.planner.plan import MemoryPlan, plan_memory
from memsim.schedules.catalog import lower_evaluation_of, lower_schedule
from memsim.schedules.choices import Choices
from memsim.schedules.lowering import lower
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import ZeroOrder


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """What decides the programs of a run, the weights' values aside.

    Attributes:
        packing: The formats of the model's matrices.
        scheme: What is trained.
        schedule: Its name; what it means is in ``choices`` if they are given.
        n_tokens: Sequence length.
        accumulate: Micro-batches a step.
        threads: Kernel threads.
        evaluate: Whether an evaluation program is needed.
        balloon_bytes: Unplanned bytes that a test node touches.
        zeroth_order: Settings of a zeroth-order schedule.
        lcsb_groups: Into how many groups ``lcsb`` parts the blocks; None is its default.
    """

    config: ModelConfig
    packing: Packing
    scheme: Scheme
    schedule: str
    n_tokens: int
    optimizer: OptimizerConfig
    accumulate: int = 1
    threads: int = 1
    evaluate: bool = False
    balloon_bytes: int = 0
    zeroth_order: ZeroOrder = field(default_factory=ZeroOrder)
    lcsb_groups: int | None = None
    choices: Choices | None = None

    def graph(self) -> ModelGraph:
        """Return the block programs of the model."""
        return ModelGraph(self.config, self.scheme, self.n_tokens, self.packing, self.accumulate, self.threads)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The programs of a run and their memory.

    Attributes:
        memory: The plan with the higher peak of the two programs.
        program: The program that this plan is of.
        choices: The schedule that the programs were lowered by.
    """

    train: PlacedProgram
    evaluate: PlacedProgram | None
    memory: MemoryPlan
    program: Program
    choices: Choices

    @property
    def n_nodes(self) -> int:
        """Nodes of all programs."""
        return sum(len(placed.program.nodes) for placed in (self.train, self.evaluate) if placed is not None)

    @property
    def widest_rank(self) -> int:
        """The most ranks that a product with adapters sees at once: those of all lanes together."""
        nodes = (
            node for node in self.train.program.nodes if node.op.startswith("linear") and "lora_scale" in node.attrs
        )
        # Every form of the product names h, or dh, after its result: [rows, ranks].
        return max((self.train.program.values[node.outputs[1]].type.shape[1] for node in nodes), default=0)


def plan_run(setup: TrainingSetup, model_hash: str) -> RunPlan:
    """Lower and place the programs of a run.

    Raises:
        UsageError: Unknown schedule, or a setting that it cannot have.
    """
    graph = setup.graph()
    if setup.choices is not None:
        choices = setup.choices
        train = lower(graph, choices, setup.optimizer, setup.balloon_bytes)
    else:
        train, choices = lower_schedule(
            setup.schedule, graph, setup.optimizer, setup.zeroth_order, setup.lcsb_groups, setup.balloon_bytes
        )
    programs = [train, lower_evaluation_of(graph, choices)] if setup.evaluate else [train]
    plans = [plan_memory(program) for program in programs]
    placed = [
        PlacedProgram(program, model_hash, plan.offsets, plan.arena_bytes)
        for program, plan in zip(programs, plans, strict=True)
    ]
    worst = max(range(len(plans)), key=lambda index: plans[index].peak_bytes)
    return RunPlan(placed[0], placed[1] if setup.evaluate else None, plans[worst], programs[worst], choices)
