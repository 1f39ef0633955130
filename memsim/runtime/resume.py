"""Going on with a run that was interrupted, killed or is to be longer: the same bits as if nothing had happened."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memsim.errors import InputError, UsageError
from memsim.file_names import RESULT_FILE
from memsim.result_file import read_result
from memsim.results import Result
from memsim.run_directory.checkpoints import DIRECTORY, Checkpoint, Checkpoints
from memsim.run_directory.directory import LOGS, existing_directory
from memsim.run_directory.settings_file import Identity, read_run_file
from memsim.run_directory.steps_file import History
from memsim.runtime.capped_run import carry_out
from memsim.runtime.config import RunConfig
from memsim.runtime.config_checks import check
from memsim.runtime.layout import accept, lay_out
from memsim.runtime.origin import Origin, located
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.preflight import make_ready
from memsim.runtime.run_progress import RunProgress
from memsim.runtime.settings import SETTINGS


@dataclass(frozen=True, slots=True)
class Resumption:
    """A run that is to go on.

    Attributes:
        directory: Its directory.
        config: Its settings, those of this command included.
        identity: What its bits depended on so far.
        origin: Where the run came from, this command included.
        allow_different_bits: Go on even if that is not as it was.
        changed: What this command sets otherwise than it was.
    """

    directory: Path
    config: RunConfig
    identity: Identity
    origin: Origin
    allow_different_bits: bool
    changed: tuple[str, ...] = field(default=())


def read_resumption(
    directory: Path, changes: Mapping[str, Any], allow_different_bits: bool = False, command: str = ""
) -> Resumption:
    """Read the settings of the run in ``directory``.

    Args:
        directory: Of an earlier ``run``.
        changes: Settings by their name in ``KEEP_BITS`` or ``CHANGE_BITS``.
        allow_different_bits: Go on even if the bits would differ from those of an uninterrupted run.
        command: The command line that asks for it, for the run's record.

    Raises:
        UsageError: A value that can never work.
        InputError: There is no run, or its settings are damaged.
    """
    before, identity, origin = read_run_file(directory / DIRECTORY, RunConfig, Origin)
    changes = {"threads": identity.threads, "compute": identity.compute, **changes}
    lr = changes.pop("lr", before.optimizer.lr)
    optimizer = before.optimizer if lr == before.optimizer.lr else replace(before.optimizer, lr=lr)
    config = located(replace(before, optimizer=optimizer, record=False, **changes))
    decided = replace(before, threads=identity.threads, compute=identity.compute)
    changed = tuple(
        setting.option
        for setting in SETTINGS
        if setting.name not in ("steps", "record") and setting.of(config) != setting.of(decided)
    )
    return Resumption(directory, config, identity, origin.resumed_by(command), allow_different_bits, changed)


def resume(resumption: Resumption, progress: RunProgress) -> RunOutcome:
    """Go on with a run from its newest checkpoint that is whole, or from its beginning if there is none.

    A run that has finished is left as it is.

    Raises:
        UsageError: A value that can never work, or one for a run that has nothing left to do.
        InputError: A file or this machine cannot serve, or the bits would differ.
        LimitError: The plan does not fit the budget.
        WorkerError: The worker failed before there was a checkpoint.
    """
    config, out = resumption.config, resumption.directory
    check(config, out)
    ready = make_ready(config, progress)
    with existing_directory(out) as directory:
        checkpoints = Checkpoints(directory.path)
        start = checkpoints.newest(progress.note)
        if (finished := _finished(out, config.steps, start)) is not None:
            if resumption.changed:
                raise UsageError(
                    f"the run in {out} has finished its {config.steps} steps, so {resumption.changed[0]} would change "
                    f"nothing; leave it out, or give more with --steps"
                )
            progress.note(f"the run in {out} has finished its {config.steps} steps; give more with --steps")
            return RunOutcome(finished, directory.path, "", labels=ready.setup.scheme.labels)
        laid = lay_out(ready, directory, progress, resumption.identity)
        differences = resumption.identity.differences(laid.identity)
        if differences and not resumption.allow_different_bits:
            raise InputError(
                f"the run in {out} would go on with other bits ({'; '.join(differences)}); "
                f"allow it with --allow-different-bits"
            )
        checkpoints.prune(start.step if start else 0)
        accept(ready, directory, laid, resumption.origin)
        progress.note(f"going on after step {start.step}" if start else "no step is saved: beginning again")
        request = resumption.origin.request(ready.config, laid.identity.texts)
        history = History(directory.path, start, LOGS)
        return carry_out(ready, directory, laid.identity, history, progress, request)


def _finished(out: Path, n_steps: int, start: Checkpoint | None) -> Result | None:
    """Return the record of a run that has nothing left to do."""
    n_done = start.step if start else 0
    if n_steps < n_done:
        raise UsageError(f"--steps {n_steps}: the run in {out} has done {n_done} already")
    if n_done == n_steps and (out / RESULT_FILE).is_file():
        result = read_result(out / RESULT_FILE)
        if result.exit_reason == "done" and len(result.steps) == n_done:
            return result
    return None
