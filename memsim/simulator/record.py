"""A simulation as a result record."""

from collections.abc import Sequence

from memsim.models.lora import n_trainable
from memsim.planner.run_plan import RunPlan, TrainingSetup
from memsim.planner.traffic import step_traffic
from memsim.results import LimitResult, Result, SimulatedResult, StepResult, host_info, versions
from memsim.simulator.simulate import Mode, Simulation, Survival


def simulated_result(
    command: str,
    model: str,
    setup: TrainingSetup,
    plan: RunPlan,
    simulation: Simulation,
    mode: Mode,
    budget: int | None,
) -> Result:
    """Return the record of a simulated run.

    Args:
        command: The command that made it.
        model: The model's name for people.
        setup: What was planned.
        plan: Its programs and memory.
        simulation: What became of it.
        mode: How the app runs: decides the verdict.
        budget: The limit that the user gave.
    """
    survival, run = simulation.survival[mode], simulation.nominal
    killed = survival.verdict == "killed"
    peak = run.peak_bytes
    baseline = int(run.numbers.app_baseline_bytes)
    return Result(
        command=command,
        source="simulated",
        model=model,
        schedule=setup.schedule,
        seq_len=setup.n_tokens,
        scheme=setup.scheme.name,
        lora_rank=setup.scheme.adapter_rank or None,
        trainable_parameters=n_trainable(setup.config, setup.scheme),
        optimizer=setup.optimizer.name,
        threads=setup.threads,
        page_cache="cold",
        budget_bytes=budget,
        fits=not killed,
        exit_reason="killed" if killed else "done",
        baseline_footprint_bytes=baseline,
        peak_footprint_bytes=peak,
        peak_working_set_bytes=peak - baseline,
        planned_peak_bytes=plan.memory.peak_bytes,
        planned_mapped_bytes=plan.memory.mapped_bytes,
        step_s=simulation.figures["step_s"].nominal,
        steps=_steps(plan, run.steps_s, peak),
        time_by_op_s=dict(sorted(run.warm.by_op_s.items(), key=lambda item: -item[1])),
        peak_by_value=dict(plan.memory.held),
        simulated=SimulatedResult(
            device=simulation.device.name,
            mode=mode,
            peak_node=simulation.peak_node.index,
            limits={name: _limit(item) for name, item in simulation.survival.items()},
            figures=dict(simulation.figures),
        ),
        host=host_info(),
        versions=versions(),
    )


def _steps(plan: RunPlan, times_s: Sequence[float], peak_bytes: int) -> tuple[StepResult, ...]:
    traffic = step_traffic(plan.train.program)
    return tuple(
        StepResult(
            step_s=step_s,
            peak_footprint_bytes=peak_bytes,
            bytes_paged_in=traffic.paged_in_bytes,
            bytes_unpacked=traffic.unpacked_bytes,
            bytes_spilled=traffic.spilled_bytes,
            bytes_written=traffic.written_bytes,
        )
        for step_s in times_s
    )


def _limit(survival: Survival) -> LimitResult:
    margin = survival.margin_bytes
    return LimitResult(
        verdict=survival.verdict,
        limit_bytes=survival.limit,
        margin_bytes=margin if margin >= 0 else None,
        over_bytes=-margin if margin < 0 else None,
        killed_at_node=survival.killed_at.index if survival.killed_at else None,
        warned_at_node=survival.warned_at.index if survival.warned_at else None,
    )
