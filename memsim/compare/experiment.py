"""The runs of a comparison: learning rates chosen on the validation text, then each seed scored on the test text.

Choosing never sees the test text: ``choose_lr`` evaluates on the other. Of a task, what is called text here is its
examples.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from memsim.compare.contenders import Contender, Shared, with_contender
from memsim.errors import DivergedError, LimitError, UsageError, WorkerError
from memsim.file_names import RESULT_FILE
from memsim.result_file import read_result
from memsim.results import Result
from memsim.runtime.config import RunConfig
from memsim.runtime.config_checks import check, check_new
from memsim.runtime.outcome import RunOutcome

Run = Callable[[RunConfig], RunOutcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every run of a comparison shares.

    Attributes:
        base: Model, budget, sequence length and all else that a contender does not change; its ``data`` is the
            training text.
        shared: Settings of schedules and schemes, for each contender that has them.
        validation: Text on which learning rates are chosen.
        test: Text on which the chosen ones are scored.
        tune_steps: Steps of a run that only serves to choose a learning rate, at most; None is a contender's own.
        seeds: Runs of each contender, with the seeds 0, 1, ...
        evals: Evaluations along a run, the one before its first step not counted.
    """

    base: RunConfig
    validation: Path
    test: Path
    shared: Shared = field(default_factory=Shared)
    tune_steps: int | None = None
    seeds: int = 3
    evals: int = 10

    def __post_init__(self) -> None:
        """Refuse counts below one, and a test text that is the validation text."""
        counts = {"--seeds": self.seeds, "--evals": self.evals}
        counts |= {} if self.tune_steps is None else {"--tune-steps": self.tune_steps}
        for option, count in counts.items():
            if count < 1:
                raise UsageError(f"{option} {count} is below 1")
        if self.validation.absolute() == self.test.absolute():
            raise UsageError(
                f"{self.test} is both --validation-data and --test-data; a learning rate chosen on the test text "
                f"would flatter what it was chosen for"
            )


@dataclass(frozen=True, slots=True)
class Choice:
    """The learning rates that were tried.

    Attributes:
        losses: Rate -> loss on the validation text at the end; None where training diverged.
        lr: The one with the lowest.
    """

    losses: Mapping[float, float | None]
    lr: float


@dataclass(frozen=True, slots=True)
class Scored:
    """A contender after its runs: one record a seed, evaluated on the test text."""

    contender: Contender
    choice: Choice
    results: tuple[Result, ...]


def compare(contenders: tuple[Contender, ...], settings: Settings, out: Path, run: Run) -> Iterator[Scored]:
    """Yield each contender when its runs are done.

    Args:
        contenders: What to compare.
        settings: What they share.
        out: An existing directory; each run gets one below it, and is not repeated if it has left its record there.
        run: Runs one configuration (``memsim.runtime.capped_run.run``, with its progress).

    Raises:
        LimitError: A run broke a memory limit.
        WorkerError: A run ended in another way, or every learning rate of one diverged.
    """
    for contender in contenders:
        choice = choose_lr(contender, settings, out, run)
        yield Scored(contender, choice, tuple(_scores(contender, choice.lr, settings, out, run)))


def check_runs(contenders: tuple[Contender, ...], settings: Settings, out: Path) -> None:
    """Check what can be checked of all runs before the first one takes its time.

    Raises:
        UsageError: A value that can never work, or that a contender cannot have.
        InputError: A text is not there, or ``out`` cannot serve.
    """
    for contender in contenders:
        check(with_contender(settings.base, contender, contender.lrs[0], settings.shared), out)
    for text in (settings.validation, settings.test):
        check_new(replace(settings.base, eval_data=text))


def choose_lr(contender: Contender, settings: Settings, out: Path, run: Run) -> Choice:
    """Train once with each learning rate, with a seed that no scored run has; keep the best on the validation text.

    Raises:
        WorkerError: All of them diverged.
    """
    if len(contender.lrs) == 1:
        return Choice({}, contender.lrs[0])
    steps = min(contender.steps, settings.tune_steps or contender.steps)
    losses: dict[float, float | None] = {}
    for lr in contender.lrs:
        config = replace(
            with_contender(settings.base, contender, lr, settings.shared),
            steps=steps,
            seed=TUNING_SEED,
            eval_data=settings.validation,
            checkpoint_every=steps,
            out=out / f"tune-{contender.label}-{steps}-lr{lr:g}",
        )
        try:
            losses[lr] = _done(config, run).evals[-1].loss
        except DivergedError:
            losses[lr] = None
    best = min(contender.lrs, key=lambda lr: inf if (loss := losses[lr]) is None else loss)
    if losses[best] is None:
        tried = ", ".join(f"{lr:g}" for lr in contender.lrs)
        raise WorkerError(
            f"{contender.label} diverged with every learning rate of {tried}; "
            f"give smaller ones (--lr-grid {contender.label}:...)"
        )
    return Choice(losses, best)


TUNING_SEED = 1_000_000
"""Beyond any seed of a scored run, so that none is scored on the order of data that its learning rate was chosen by."""


def _scores(contender: Contender, lr: float, settings: Settings, out: Path, run: Run) -> Iterator[Result]:
    for seed in range(settings.seeds):
        yield _done(
            replace(
                with_contender(settings.base, contender, lr, settings.shared),
                steps=contender.steps,
                seed=seed,
                eval_data=settings.test,
                checkpoint_every=contender.steps,
                eval_first=True,
                eval_every=-(-contender.steps // settings.evals),
                out=out / f"test-{contender.label}-{contender.steps}-lr{lr:g}-seed{seed}",
            ),
            run,
        )


def _done(config: RunConfig, run: Run) -> Result:
    """Return the record of a run: the one that it left, or else a new one."""
    assert config.out is not None
    record = config.out / RESULT_FILE
    if record.exists():
        result, message = read_result(record), "see its record"
    else:
        shutil.rmtree(config.out, ignore_errors=True)  # what a killed comparison left of this run
        outcome = run(config)
        result, message = outcome.result, outcome.message
        if outcome.diverged:
            shutil.rmtree(config.out, ignore_errors=True)
            raise DivergedError(message)
    if result.exit_reason == "interrupted":
        shutil.rmtree(config.out, ignore_errors=True)  # so that a resumed comparison runs it again
        raise KeyboardInterrupt
    if result.exit_reason != "done":
        kind = WorkerError if result.fits is None else LimitError
        raise kind(f"{config.schedule}, learning rate {config.optimizer.lr:g}, ended: {message}")
    return result
