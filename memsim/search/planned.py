"""A search as a record: the plan for a budget, the named schedules beside it, and everything between."""

from collections.abc import Callable
from dataclasses import replace

from memsim.host import host_info, versions
from memsim.models.lora import n_trainable
from memsim.planner.run_plan import plan_run
from memsim.results import Band, PlannedResult, PlanPoint, Result
from memsim.schedules.choices import SCHEDULES, Choices
from memsim.schedules.names import AUTO
from memsim.schedules.record import record_choices
from memsim.search.format_cost import format_cost
from memsim.search.longest import longest_sequence
from memsim.search.needs import Needs
from memsim.search.probe import node_seconds
from memsim.search.search import Candidate, Found, Search, plan_needs
from memsim.simulator.device import Device
from memsim.simulator.simulate import simulate
from memsim.simulator.trace import trace_program
from memsim.units import MIB

READING_BYTES = 2 * MIB
"""Two runs' peaks may differ by as much."""

NeedsOf = Callable[[Choices], Needs]


def planned_result(
    model: str, searched: Search, found: Found | None, device: Device, needs_of: NeedsOf, budget_bytes: int
) -> Result:
    """Return the record of a search.

    Args:
        model: The model's name for people.
        searched: All that was found.
        found: What was chosen for the budget; None if nothing fits.
        device: Whose rates were used.
        needs_of: How the budget of a schedule is counted.
        budget_bytes: The budget.
    """
    setup = searched.setup
    points = [_candidate_point(candidate) for candidate in searched.front()]
    bands = _bands(found, device, searched.needs) if found else None
    planned = PlannedResult(
        device=device.name,
        chosen=_found_point(found) if found else None,
        choices=record_choices(found.choices) if found else None,
        bound=found.bound if found else None,
        step_s=bands[0] if bands else None,
        footprint_bytes=bands[1] if bands else None,
        named=tuple(_named_point(searched, name, device, needs_of) for name in SCHEDULES),
        front=tuple(points),
        smallest_budget_bytes=searched.smallest().need_bytes,
        format_cost=format_cost(setup, found.plan) if found else None,
        longest_seq_len=longest_sequence(setup, searched.needs, budget_bytes, searched.smallest_named),
    )
    memory = found.plan.memory if found else None
    return Result(
        command="plan",
        source="planned",
        model=model,
        schedule=AUTO,
        seq_len=setup.n_tokens,
        scheme=setup.scheme.name,
        lora_rank=setup.scheme.adapter_rank or None,
        trainable_parameters=n_trainable(setup.config, setup.scheme),
        optimizer=setup.optimizer.name,
        threads=setup.threads,
        budget_bytes=budget_bytes,
        fits=found is not None,
        exit_reason=None if found else "refused",
        planned_peak_bytes=memory.peak_bytes if memory else None,
        planned_mapped_bytes=memory.mapped_bytes if memory else None,
        planned_footprint_bytes=int(planned.footprint_bytes.nominal) if planned.footprint_bytes else None,
        file_floor_bytes=memory.file_floor_bytes if memory else None,
        planned_step_s=found.time_s if found else None,
        peak_by_value=dict(memory.held) if memory else {},
        choices=planned.choices,
        planned=planned,
        host=host_info(),
        versions=versions(),
    )


def _candidate_point(candidate: Candidate) -> PlanPoint:
    step_s = candidate.time_ps / 1e12
    return PlanPoint(schedule=AUTO, need_bytes=candidate.need_bytes, peak_bytes=candidate.peak_bytes, step_s=step_s)


def _found_point(found: Found) -> PlanPoint:
    peak = found.plan.memory.peak_bytes
    return PlanPoint(schedule=AUTO, need_bytes=found.need_bytes, peak_bytes=peak, step_s=found.time_s)


def _named_point(searched: Search, name: str, device: Device, needs_of: NeedsOf) -> PlanPoint:
    if name in searched.named:
        return replace(_found_point(searched.named[name]), schedule=name)
    plan = plan_run(replace(searched.setup, schedule=name, choices=None), "")
    return PlanPoint(
        schedule=name,
        need_bytes=plan_needs(plan, needs_of(plan.choices)),
        peak_bytes=plan.memory.peak_bytes,
        step_s=float(node_seconds(plan.train.program, device.at("nominal"), device.rule).sum()),
    )


def _bands(found: Found, device: Device, needs: Needs) -> tuple[Band, Band]:
    """Return seconds of a step and peak footprint, which here is within what a reading may be off."""
    memory = found.plan.memory
    figures = simulate(trace_program(found.plan.train.program, memory), device, n_steps=1).figures
    if not needs.with_files:
        return figures["warm_step_s"], figures["peak_footprint_bytes"]
    nominal = needs.total(memory.peak_bytes, 0, found.plan.n_nodes)
    return figures["warm_step_s"], Band(nominal - READING_BYTES, nominal, nominal + READING_BYTES)
