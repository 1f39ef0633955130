"""A worker with its orders: started under the open cap, and followed to its end."""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from memsim.cap.open import Cap
from memsim.data.masking import mask_token_id
from memsim.execution.protocol import TaskJob, WorkerJob
from memsim.file_names import CAPTURE_FILE, EVENTS_FILE, PROGRAM_FILE, SEEDS_FILE
from memsim.files import write_text
from memsim.models.schemes import scheme_to_dict
from memsim.planner.separate import mapped_from_bytes
from memsim.run_directory.directory import ADAPTER, EVAL_PROGRAM_FILE, RunDirectory
from memsim.run_directory.seed_log import SeedLog, header_of
from memsim.run_directory.settings_file import Identity
from memsim.run_directory.steps_file import History
from memsim.runtime.follow import NotCompiled
from memsim.runtime.outcome import Outcome
from memsim.runtime.preflight import Ready, admit
from memsim.runtime.prepare import forget_kernels, prepare_kernels
from memsim.runtime.recording_cost import recorded_steps
from memsim.runtime.run_progress import RunProgress, StepDone
from memsim.runtime.supervise import supervise
from memsim.schedules.zeroth_order import METHODS, Estimator, estimator


def make_job(ready: Ready, directory: RunDirectory, identity: Identity, history: History) -> WorkerJob:
    """Return the worker's orders, but for what only the open cap knows."""
    config, pack, plan, out = ready.config, ready.pack, ready.plan, directory.path
    used = identity.tokenizer
    return WorkerJob(
        group=None,
        data_limit_bytes=None,
        threads=ready.setup.threads,
        compute=ready.compute,
        pack=str(pack.directory.absolute()),
        program=str(out / PROGRAM_FILE),
        eval_program=str(directory.work / EVAL_PROGRAM_FILE) if plan.evaluate else None,
        task=_task_job(ready),
        tokens=str(directory.checkpoints / "tokens.bin"),
        eval_tokens=str(directory.checkpoints / "eval.bin") if plan.evaluate else None,
        eval_sequences=config.eval_sequences,
        eval_every=config.eval_every,
        eval_first=config.eval_first,
        steps=config.steps,
        seq_len=config.seq_len,
        accumulate=config.accumulate,
        seed=config.seed,
        mask_id=mask_token_id(ready.tokenizer.path, pack.config.vocab_size) if _hides_tokens(ready) else None,
        begin_id=used.begin_ids[0] if used and used.every_window and used.begin_ids else None,
        cold=config.cold,
        verify=config.verify,
        scratch=str((config.scratch or out).absolute()),
        adapter=str(directory.work / ADAPTER),
        kernel_rank=plan.widest_rank,
        scheme=scheme_to_dict(ready.setup.scheme),
        base_model=config.model,
        checkpoints=str(directory.checkpoints),
        checkpoint_every=config.checkpoint_every,
        first_step=history.saved_step,
        checkpoint=str(ready.checkpoint) if ready.checkpoint else None,
        capture=str(directory.work / CAPTURE_FILE) if config.record else None,
        recorded_steps=recorded_steps(config.steps),
        mapped_from_bytes=mapped_from_bytes(plan.memory),
    )


def _hides_tokens(ready: Ready) -> bool:
    """Return whether the worker itself hides tokens to be guessed."""
    return ready.task is None and not ready.pack.config.family.causal


def _task_job(ready: Ready) -> TaskJob | None:
    """Return what the worker must know of the task, if there is one."""
    task = ready.task
    if task is None:
        return None
    model, labels = ready.pack.config, ready.setup.scheme.labels
    end_id = model.family.ends[1] if model.family.ends else None
    if labels:
        one_label = not model.family.causal
        return TaskJob(n_labels=labels, n_options=1, mean=True, end_id=end_id, one_label=one_label)
    return TaskJob(n_labels=model.vocab_size, n_options=len(task.options), mean=task.score == "mean", end_id=end_id)


def launch(
    ready: Ready, job: WorkerJob, cap: Cap, directory: RunDirectory, history: History, progress: RunProgress
) -> Outcome:
    """Run the worker under the open ``cap``.

    Raises:
        LimitError: The worker's own baseline is so high that the plan does not fit the budget.
        WorkerError: It failed before there was a checkpoint.
    """
    config = ready.config
    group = str(cap.group_path) if cap.group_path else None
    limit = config.budget_bytes if cap.needs_data_limit else None
    orders = directory.work / "job.json"
    write_text(orders, json.dumps(asdict(job) | {"group": group, "data_limit_bytes": limit}))

    with ExitStack() as stack:
        decided = _replayable(ready)
        log = _seed_log(ready, decided, directory.path) if decided is not None else None
        if log is not None:
            stack.callback(log.close)

        def on_step(done: StepDone) -> None:
            if log is not None and decided is not None:
                log.write(done.step - 1, decided.optimizer.lr, done.rho)
            progress.step(done)

        def once() -> Outcome:
            return supervise(
                orders,
                cap,
                ready.plan.train.program,
                directory.path / EVENTS_FILE if config.events else None,
                lambda baseline_bytes: admit(ready, baseline_bytes),
                progress.node,
                on_step,
                history,
                progress.note,
                config.decimal,
            )

        try:
            return once()
        except NotCompiled as missing:
            progress.note(f"{missing}: compiling it again")
            forget_kernels(job.threads)
            prepare_kernels(job.threads, progress.stage)
        try:
            return once()
        except NotCompiled:
            forget_kernels(job.threads)
            raise


def _replayable(ready: Ready) -> Estimator | None:
    """Return the method of a run that can be made again from its seeds, as it is executed; None of any other run."""
    config = ready.config
    if config.schedule not in METHODS or not METHODS[config.schedule].replays:
        return None
    return estimator(config.schedule, config.zeroth_order, config.optimizer.lr, config.accumulate)


def _seed_log(ready: Ready, decided: Estimator, out: Path) -> SeedLog:
    """Begin, or go on with, the log of such a run."""
    config = ready.config
    header = header_of(decided, config.model, ready.pack.model_hash, config.seed, ready.setup.scheme)
    return SeedLog(out / SEEDS_FILE, header)
