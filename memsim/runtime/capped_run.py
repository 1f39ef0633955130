"""One capped fine-tuning run, seen from the parent: plan, refuse or launch, watch, record."""

import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

from memsim.cap.linux import require_linux
from memsim.cap.open import open_cap
from memsim.errors import InputError, MemsimError
from memsim.execution.protocol import WorkerJob
from memsim.file_names import CAPTURE_FILE, RESULT_FILE
from memsim.files import writing
from memsim.result_file import write_result
from memsim.results import Enforcement, Request, Result
from memsim.run_directory.checkpoints import Checkpoints
from memsim.run_directory.directory import ADAPTER, LOGS, RUNS, RunDirectory, new_directory
from memsim.run_directory.settings_file import Identity
from memsim.run_directory.steps_file import History
from memsim.runtime.config import RunConfig
from memsim.runtime.config_checks import check, check_new
from memsim.runtime.launch import launch, make_job
from memsim.runtime.layout import accept, lay_out
from memsim.runtime.origin import begin, located
from memsim.runtime.outcome import Outcome, RunOutcome
from memsim.runtime.preflight import Ready, make_ready
from memsim.runtime.record import make_record
from memsim.runtime.recording_cost import with_recording
from memsim.runtime.run_progress import FINISHED, RunProgress


def run(config: RunConfig, progress: RunProgress | None = None, command: str = "") -> RunOutcome:
    """Run one fine-tuning job in a capped child process.

    Args:
        config: What to run.
        progress: What draws it; None draws nothing.
        command: The command line that asks for it, for its record.

    Returns:
        The record of the run, also when it ended at the cap, was thrashing, or failed; the caller turns
        ``result.exit_reason`` into an exit code.

    Raises:
        UsageError: A value that can never work.
        InputError: A file or this machine cannot serve.
        LimitError: The plan does not fit the budget.
    """
    progress = progress or RunProgress()
    require_linux("a capped run")
    check_new(config)
    check(config, config.out or RUNS)
    config = located(config)
    origin = begin(config, command)
    ready = make_ready(config, progress)
    with new_directory(config.out, f"{ready.model}-{config.schedule}") as directory:
        laid = lay_out(ready, directory, progress, None)
        accept(ready, directory, laid, origin)
        directory.settle()
        asked = origin.request(ready.config, laid.identity.texts)
        return carry_out(ready, directory, laid.identity, History(directory.path, None, LOGS), progress, asked)


def carry_out(
    ready: Ready,
    directory: RunDirectory,
    identity: Identity,
    history: History,
    progress: RunProgress,
    request: Request,
) -> RunOutcome:
    """Run the steps that are not in ``history`` in a capped worker, and write the record, with ``request`` in it.

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
        if outcome.reason == "interrupted":
            outcome.message = f"interrupted after {len(outcome.steps)} steps"
        result = make_record(ready, identity, enforcement, kernel_peak, outcome, history, request)
        result = _leave(ready, directory, job, outcome, replace(result, unheard=progress.unheard()))
    except MemsimError as error:
        raise type(error)(_with_hint(str(error), out, history.saved_step)) from error
    finally:
        directory.keep = directory.keep or history.saved_step > 0
        with suppress(InputError):  # what ended the run is what counts
            Checkpoints(out).prune(history.saved_step)
    directory.keep = True
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
