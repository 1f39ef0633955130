"""One capped fine-tuning run, seen from the parent: plan, refuse or launch, watch, record."""

import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from memsim.errors import InputError, MemsimError
from memsim.file_names import CAPTURE_FILE, RESULT_FILE
from memsim.files import writing
from memsim.result_file import write_result
from memsim.results import Enforcement, Result
from memsim.runtime.cap import open_cap
from memsim.runtime.checkpoints import Checkpoints
from memsim.runtime.directories import ADAPTER, LOGS, RUNS, RunDirectory, new_directory
from memsim.runtime.follow import Outcome
from memsim.runtime.history import History
from memsim.runtime.job import WorkerJob
from memsim.runtime.launch import launch, make_job
from memsim.runtime.layout import accept, lay_out
from memsim.runtime.ready import Ready, make_ready
from memsim.runtime.recording_cost import with_recording
from memsim.runtime.run_checks import check, check_new
from memsim.runtime.run_config import RunConfig, RunOutcome, RunProgress
from memsim.runtime.run_file import Identity
from memsim.runtime.run_record import make_record

FINISHED: list[Callable[[RunConfig, RunOutcome], None]] = []
"""Called with every run of this process that ended with a record: how the pytest plugin sees the runs of a test."""


def run(config: RunConfig, progress: RunProgress | None = None) -> RunOutcome:
    """Run one fine-tuning job in a capped child process.

    Args:
        config: What to run.
        progress: What draws it; None draws nothing.

    Returns:
        The record of the run, also when it ended at the cap, was thrashing, or failed; the caller turns
        ``result.exit_reason`` into an exit code.

    Raises:
        UsageError: A value that can never work.
        InputError: A file or this machine cannot serve.
        LimitError: The plan does not fit the budget.
    """
    progress = progress or RunProgress()
    check_new(config)
    check(config, config.out or RUNS)
    ready = make_ready(config, progress)
    with new_directory(config.out, f"{ready.model}-{config.schedule}") as directory:
        laid = lay_out(ready, directory, progress, None)
        accept(ready, directory, laid)
        directory.settle()
        return carry_out(ready, directory, laid.identity, History(directory.path, None, LOGS), progress)


def carry_out(
    ready: Ready, directory: RunDirectory, identity: Identity, history: History, progress: RunProgress
) -> RunOutcome:
    """Run the steps that are not in ``history`` in a capped worker, and write the record.

    Raises:
        InputError: A file or this machine cannot serve.
        LimitError: The worker's own baseline is so high that the plan does not fit the budget.
        WorkerError: The worker failed before there was a checkpoint.
    """
    config, out = ready.config, directory.path
    try:
        with open_cap(config.budget_bytes, config.enforcement) as cap:
            if cap.needs_watchdog:
                progress.note(
                    f"no cgroup here ({cap.refusals[-1] if cap.refusals else 'not asked for'}): {cap.enforcement}"
                )
            job = make_job(ready, directory, identity, history)
            outcome = launch(ready, job, cap, directory, history, progress)
            enforcement, kernel_peak = cast(Enforcement, cap.enforcement), cap.kernel_peak_bytes()
        result = make_record(ready, identity, enforcement, kernel_peak, outcome, history)
        result = _leave(ready, directory, job, outcome, result)
    except MemsimError as error:
        raise type(error)(_with_hint(str(error), out, history.saved_step)) from error
    finally:
        directory.keep = directory.keep or history.saved_step > 0
        with suppress(InputError):  # what ended the run is what counts
            Checkpoints(out).prune(history.saved_step)
    directory.keep = True
    if outcome.reason == "interrupted":
        outcome.message = f"interrupted after {len(outcome.steps)} steps"
    hinted = outcome.message and _with_hint(outcome.message, out, history.saved_step)
    finished = RunOutcome(result, out, hinted, outcome.diverged, ready.setup.scheme.labels)
    for listener in FINISHED:
        listener(config, finished)
    return finished


def _leave(ready: Ready, directory: RunDirectory, job: WorkerJob, outcome: Outcome, result: Result) -> Result:
    """Leave what the run made in its directory; return the record, with what a recording cost."""
    out = directory.path
    with writing(out):
        if job.capture and Path(job.capture).exists():
            Path(job.capture).replace(out / CAPTURE_FILE)
        result = with_recording(result, job, out / CAPTURE_FILE, outcome)
        if outcome.reason == "done":
            for file in (directory.work / ADAPTER).iterdir():
                file.replace(out / file.name)
            for name in ready.texts:
                (directory.checkpoints / name).unlink(missing_ok=True)
    write_result(out / RESULT_FILE, result)
    return result


def _with_hint(message: str, out: Path, saved_step: int) -> str:
    """Return what ended a run, and how it can go on."""
    command = f"`memsim run --resume {shlex.quote(str(out))}`"
    return f"{message}; {command} goes on after step {saved_step}" if saved_step else message
