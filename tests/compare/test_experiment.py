"""Which runs a comparison makes, on which text, and what it does with their records. No run is real here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from memsim.compare.contenders import Contender, Shared
from memsim.compare.experiment import Settings, check_runs, compare
from memsim.errors import DivergedError, InputError, LimitError, UsageError, WorkerError
from memsim.file_names import RESULT_FILE
from memsim.host import host_info
from memsim.result_file import write_result
from memsim.results import Evaluation, ExitReason, Result, StepResult
from memsim.runtime.config import RunConfig
from memsim.runtime.outcome import RunOutcome
from memsim.schedules.zeroth_order import ZeroOrder

TRAIN, VALIDATION, TEST = Path("train.txt"), Path("validation.txt"), Path("test.txt")
BASE = RunConfig(budget_bytes=10**9, data=TRAIN)
SETTINGS = Settings(base=BASE, validation=VALIDATION, test=TEST, seeds=2, evals=2)
LRS = (0.1, 0.2, 0.3)

# The rate that is best on the test text is not the one that is best on the validation text.
LOSSES = {VALIDATION: {0.1: 3.0, 0.2: 1.0, 0.3: 2.0}, TEST: {0.1: 0.5, 0.2: 4.0, 0.3: 4.5}}


class Runs:
    """Stands for ``memsim run``: remembers what it was asked for and leaves a record as a run does."""

    def __init__(self, ends: Callable[[RunConfig], ExitReason] = lambda config: "done") -> None:
        self.configs: list[RunConfig] = []
        self._ends = ends

    def __call__(self, config: RunConfig) -> RunOutcome:
        self.configs.append(config)
        assert config.out is not None
        assert config.eval_data is not None
        loss = LOSSES[config.eval_data][config.optimizer.lr]
        if loss > 100:
            raise DivergedError("the loss is nan at step 1; lower --lr")
        reason = self._ends(config)
        result = Result(
            command="run",
            source="measured",
            model="toy",
            optimizer=config.optimizer.name,
            fits={"done": True, "killed_at_cap": False}.get(reason),
            exit_reason=reason,
            steps=(StepResult(step_s=0.1, bytes_paged_in=10),) * config.steps,
            evals=(Evaluation(step=config.steps, loss=loss, accuracy=0.5),),
            host=host_info(),
            versions={},
        )
        config.out.mkdir()
        write_result(config.out / RESULT_FILE, result)
        return RunOutcome(result, config.out, "" if reason == "done" else f"it was {reason}")


def one(schedule: str = "mebp", steps: int = 10) -> tuple[Contender, ...]:
    return (Contender(schedule, steps, LRS),)


def test_the_rate_is_chosen_on_the_validation_text_alone(tmp_path: Path) -> None:
    runs = Runs()
    (scored,) = compare(one(), SETTINGS, tmp_path, runs)
    tuning, scoring = runs.configs[: len(LRS)], runs.configs[len(LRS) :]
    assert {config.eval_data for config in tuning} == {VALIDATION}
    assert [config.optimizer.lr for config in tuning] == list(LRS)
    assert scored.choice.lr == 0.2
    assert dict(scored.choice.losses) == LOSSES[VALIDATION]
    assert {(config.eval_data, config.optimizer.lr) for config in scoring} == {(TEST, 0.2)}
    assert {config.data for config in runs.configs} == {TRAIN}


def test_every_run_of_a_contender_has_its_scheme_and_a_directory_of_its_own(tmp_path: Path) -> None:
    runs = Runs()
    both = (*one(), Contender("mebp", 10, LRS, "prefix"))
    adapters, prefix = compare(both, SETTINGS, tmp_path, runs)
    assert (adapters.contender.scheme, prefix.contender.scheme) == ("lora", "prefix")
    assert [config.scheme for config in runs.configs] == ["lora"] * 5 + ["prefix"] * 5
    assert len({config.out for config in runs.configs}) == 10


@pytest.mark.parametrize(
    ("contender", "changes", "message"),
    [
        (Contender("zo-sgd-cons", 5, LRS), {"accumulate": 2}, "--accumulate 2: zo-sgd-cons needs the losses"),
        (Contender("mezo", 5, LRS), {"zeroth_order": ZeroOrder(eps=0.0)}, "--zo-eps 0 must be a positive number"),
        (Contender("mebp", 5, LRS), {"template": False}, "--no-template needs --task"),
        (Contender("mebp", 5, LRS), {"eval_sequences": 0}, "--eval-sequences 0 is below 1"),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_the_first(
    disk: Path, contender: Contender, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        if (zeroth_order := changes.get("zeroth_order")) is not None:
            settings = replace(SETTINGS, shared=Shared(zeroth_order=zeroth_order))  # type: ignore[arg-type]
        else:
            settings = replace(SETTINGS, base=replace(BASE, **changes))  # type: ignore[arg-type]
        check_runs((*one(), contender), settings, disk)
    assert message in str(refusal.value)


def test_a_test_text_that_is_not_there_is_missed_before_the_first_run(disk: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.txt"
    there.write_text("text")
    settings = replace(SETTINGS, base=replace(BASE, data=there), validation=there)
    with pytest.raises(InputError, match=r"no text file at test\.txt"):
        check_runs(one(), settings, disk)


def test_no_scored_run_has_the_seed_that_chose_its_rate(tmp_path: Path) -> None:
    runs = Runs()
    list(compare(one(), SETTINGS, tmp_path, runs))
    tuning, scoring = runs.configs[: len(LRS)], runs.configs[len(LRS) :]
    assert [config.seed for config in scoring] == [0, 1]
    assert len({config.seed for config in tuning}) == 1
    assert tuning[0].seed not in {0, 1}


def test_steps_and_evaluations_are_those_that_were_asked_for(tmp_path: Path) -> None:
    runs = Runs()
    list(compare(one(steps=9), replace(SETTINGS, tune_steps=4), tmp_path, runs))
    tuning, scoring = runs.configs[0], runs.configs[-1]
    assert (tuning.steps, tuning.eval_every, tuning.eval_first) == (4, 0, False)
    assert (scoring.steps, scoring.eval_every, scoring.eval_first) == (9, 5, True)


def test_a_single_rate_needs_no_choosing(tmp_path: Path) -> None:
    runs = Runs()
    (scored,) = compare((Contender("mebp", 3, (0.3,)),), SETTINGS, tmp_path, runs)
    assert (scored.choice.lr, scored.choice.losses) == (0.3, {})
    assert {config.eval_data for config in runs.configs} == {TEST}


def test_a_rate_that_diverges_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, VALIDATION, {0.1: 3.0, 0.2: 1000.0, 0.3: 2.0})
    (scored,) = compare(one(), SETTINGS, tmp_path, Runs())
    assert scored.choice.lr == 0.3
    assert dict(scored.choice.losses) == {0.1: 3.0, 0.2: None, 0.3: 2.0}
    monkeypatch.setitem(LOSSES, VALIDATION, dict.fromkeys(LRS, 1000.0))
    with pytest.raises(WorkerError, match=r"tiled diverged with every learning rate of 0.1, 0.2, 0.3"):
        list(compare(one("tiled"), SETTINGS, tmp_path, Runs()))


def test_a_finished_run_is_not_repeated_and_an_interrupted_one_is(tmp_path: Path) -> None:
    first = Runs(lambda config: "interrupted" if config.seed == 1 else "done")
    with pytest.raises(KeyboardInterrupt):
        list(compare(one(), SETTINGS, tmp_path, first))
    (tmp_path / "test-mebp-10-lr0.2-seed1").mkdir()  # a run that was killed has left no record
    second = Runs()
    (scored,) = compare(one(), SETTINGS, tmp_path, second)
    assert [config.seed for config in second.configs] == [1]
    assert len(scored.results) == SETTINGS.seeds
    assert scored.choice.lr == 0.2


@pytest.mark.parametrize(("reason", "kind"), [("killed_at_cap", LimitError), ("killed", WorkerError)])
def test_a_run_that_ends_early_ends_the_comparison(tmp_path: Path, reason: ExitReason, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"mebp, learning rate 0.1, ended: it was {reason}"):
        list(compare(one(), SETTINGS, tmp_path, Runs(lambda config: reason)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "--seeds 0 is below 1"),
        ({"evals": 0}, "--evals 0 is below 1"),
        ({"tune_steps": 0}, "--tune-steps 0 is below 1"),
        ({"test": VALIDATION.absolute()}, "is both --validation-data and --test-data"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SETTINGS, **changes)  # type: ignore[arg-type]
