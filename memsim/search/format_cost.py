"""What a model's matrices cost more than the paper's symmetric INT4: on disk, in page-ins, and of the file floor."""

from dataclasses import replace

from memsim.models.matrix_formats import describe, describe_counts, formats_of
from memsim.models.parts import matrices, part_names
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.planner.traffic import step_traffic
from memsim.results import FormatCost
from memsim.weights.pack_writer import pack_bytes

_PAPER = 32


def format_cost(setup: TrainingSetup, plan: RunPlan) -> FormatCost | None:
    """Return what a step costs more than it would in symmetric INT4, groups of 32; None where that is what it has.

    Mapped pages are no footprint: the arena is the same.

    Args:
        setup: What was planned.
        plan: Its plan.
    """
    if describe(setup.packing) == _PAPER:
        return None
    paper = plan_run(replace(setup, packing=_PAPER, choices=plan.choices), "")
    formats, config = formats_of(setup.packing), setup.config
    stored = (formats.of(part, name) for part in part_names(config) for name in matrices(config, part))
    paged_in = [step_traffic(one.train.program).paged_in_bytes for one in (plan, paper)]
    return FormatCost(
        stored=describe_counts(stored),
        disk_bytes=pack_bytes(config, setup.packing) - pack_bytes(config, _PAPER),
        paged_in_bytes=paged_in[0] - paged_in[1],
        file_floor_bytes=plan.memory.file_floor_bytes - paper.memory.file_floor_bytes,
    )
