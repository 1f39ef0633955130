"""A simulation as a result record."""

from collections.abc import Sequence
from dataclasses import replace

from memsim.host import host_info, versions
from memsim.models.lora import n_trainable
from memsim.planner.run_plan import RunPlan, TrainingSetup
from memsim.planner.traffic import Traffic, step_traffic
from memsim.results import LimitResult, Result, SimulatedResult, StepResult
from memsim.schedules.catalog import updates_by
from memsim.simulator.modes import Mode
from memsim.simulator.recordings.recording import Recording
from memsim.simulator.simulate import Simulation, Survival


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
    planned = Result(
        command=command,
        source="planned",
        model=model,
        schedule=setup.schedule,
        seq_len=setup.n_tokens,
        scheme=setup.scheme.name,
        lora_rank=setup.scheme.adapter_rank or None,
        trainable_parameters=n_trainable(setup.config, setup.scheme),
        optimizer=updates_by(setup.schedule, setup.optimizer),
        threads=setup.threads,
        planned_peak_bytes=plan.memory.peak_bytes,
        planned_mapped_bytes=plan.memory.mapped_bytes,
        peak_by_value=dict(plan.memory.held),
        host=host_info(),
        versions=versions(),
    )
    return _simulated(planned, step_traffic(plan.train.program), simulation, mode, budget)


def replayed_result(recording: Recording, simulation: Simulation, mode: Mode, budget: int | None) -> Result:
    """Return the record of a recorded run, replayed; the arguments are those of :func:`simulated_result`.

    What was planned, and where it ran, is what the run's own record says; its measured figures are left out.
    """
    run = recording.result
    measured = replace(
        run,
        command="replay",
        enforcement=None,
        file_floor_bytes=None,
        planned_footprint_bytes=None,
        peak_rss_bytes=None,
        kernel_peak_bytes=None,
        evals=(),
        peak_by_value=dict(recording.held_at(recording.peak)),
    )
    return _simulated(measured, sum(recording.traffic, Traffic()), simulation, mode, budget)


def _simulated(run: Result, traffic: Traffic, simulation: Simulation, mode: Mode, budget: int | None) -> Result:
    """Return the record of ``run`` on the simulated device."""
    survival, nominal = simulation.survival[mode], simulation.nominal
    killed = survival.verdict == "killed"
    peak = nominal.peak_bytes
    baseline = int(nominal.numbers.app_baseline_bytes)
    return replace(
        run,
        source="simulated",
        page_cache="cold",
        budget_bytes=budget,
        fits=not killed,
        exit_reason="killed" if killed else "done",
        baseline_footprint_bytes=baseline,
        peak_footprint_bytes=peak,
        peak_working_set_bytes=peak - baseline,
        step_s=simulation.figures["step_s"].nominal,
        steps=_steps(traffic, nominal.steps_s, peak),
        time_by_op_s=dict(sorted(nominal.warm.by_op_s.items(), key=lambda item: -item[1])),
        simulated=SimulatedResult(
            device=simulation.device.name,
            mode=mode,
            peak_node=simulation.peak_node.index,
            limits={name: limit_result(item) for name, item in simulation.survival.items()},
            figures=dict(simulation.figures),
        ),
    )


def _steps(traffic: Traffic, times_s: Sequence[float], peak_bytes: int) -> tuple[StepResult, ...]:
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


def limit_result(survival: Survival) -> LimitResult:
    """Return what one limit does to a run, for a record."""
    margin = survival.margin_bytes
    return LimitResult(
        verdict=survival.verdict,
        limit_bytes=survival.limit,
        margin_bytes=margin if margin >= 0 else None,
        over_bytes=-margin if margin < 0 else None,
        killed_at_node=survival.killed_at.index if survival.killed_at else None,
        warned_at_node=survival.warned_at.index if survival.warned_at else None,
    )
