"""The result record of a run."""

from memsim.host import host_info, versions
from memsim.models.lora import n_trainable
from memsim.results import Enforcement, ExitReason, Request, Result
from memsim.run_directory.settings_file import Identity
from memsim.run_directory.steps_file import History, highest
from memsim.runtime.config import task_name
from memsim.runtime.outcome import Outcome
from memsim.runtime.preflight import Ready
from memsim.schedules.catalog import updates_by
from memsim.schedules.record import record_choices

_FITS: dict[ExitReason, bool] = {"done": True, "refused": False, "killed_at_cap": False, "thrashing": False}


def make_record(
    ready: Ready,
    identity: Identity,
    enforcement: Enforcement,
    kernel_peak: int | None,
    outcome: Outcome,
    history: History,
    request: Request,
) -> Result:
    """Return what is known of a run that has ended.

    Args:
        ready: The run.
        identity: What its bits depend on.
        enforcement: What capped it.
        kernel_peak: The kernel's own peak of the group in this command, in bytes; None without one.
        outcome: What its worker reported.
        history: What earlier commands did of it.
        request: What it was asked for.
    """
    config, memory, before = ready.config, ready.plan.memory, history.start
    measured_baseline = outcome.baseline_bytes
    peak = max(outcome.peak_footprint_bytes, before.peak_footprint_bytes if before else 0)
    working_set = peak - measured_baseline if measured_baseline else None
    return Result(
        command="run",
        source="measured",
        model=ready.model,
        schedule=config.schedule,
        seq_len=config.seq_len,
        task=task_name(config),
        tokenizer=identity.tokenizer,
        scheme=config.scheme,
        lora_rank=ready.setup.scheme.adapter_rank or None,
        trainable_parameters=n_trainable(ready.setup.config, ready.setup.scheme),
        optimizer=updates_by(config.schedule, config.optimizer),
        compute=ready.compute,
        threads=ready.setup.threads,
        weights="synthetic" if ready.pack.source == "synthetic" else "packed",
        page_cache="cold" if config.cold else "warm",
        budget_bytes=config.budget_bytes,
        enforcement=enforcement,
        fits=_FITS.get(outcome.reason),
        exit_reason=outcome.reason,
        baseline_footprint_bytes=measured_baseline,
        peak_footprint_bytes=peak,
        peak_working_set_bytes=working_set,
        planned_peak_bytes=memory.peak_bytes,
        planned_mapped_bytes=memory.mapped_bytes,
        planned_working_set_bytes=ready.working_set_bytes,
        planned_footprint_bytes=ready.baseline_bytes + ready.working_set_bytes,
        file_floor_bytes=memory.file_floor_bytes,
        peak_rss_bytes=max(outcome.peak_rss_bytes, before.peak_rss_bytes if before else 0),
        kernel_peak_bytes=highest(kernel_peak, before.kernel_peak_bytes if before else None),
        step_s=outcome.step_s,
        steps=tuple(outcome.steps),
        evals=tuple(outcome.evals),
        time_by_op_s=outcome.time_by_op_s,
        peak_by_value=dict(memory.held),
        planned_step_s=config.plan.step_s if config.plan else None,
        choices=record_choices(ready.plan.choices),
        message=outcome.message or None,
        request=request,
        host=host_info(),
        versions=versions(),
    )
