"""A run that was asked for with relative names: it goes on, is replayed and is told of from any directory."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from capped_runs import cache, config_for, run_toy, shared_cache, write_model
from memsim.regression.baseline import from_run, read_baseline, write_baseline
from memsim.result_file import read_result
from memsim.run_directory.seed_log import read_seed_log
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig
from memsim.runtime.origin import located
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.replay_seeds import replay_seeds
from memsim.runtime.resume import read_resumption, resume
from memsim.runtime.run_progress import RunProgress
from memsim.schedules.optimizers import OptimizerConfig
from memsim.tasks.task_file import read_task
from memsim.weights.cache import identifier

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

TASK = Path("memsim/tasks/sst2.toml").absolute()
EXAMPLES = "".join(
    json.dumps({"sentence": f"it is {word}", "label": n % 2}) + "\n" for n, word in enumerate("abcdefgh")
)


@pytest.fixture(scope="module")
def home(disk: Path) -> Path:
    """A directory with a model, a task of one's own and its examples."""
    home = disk / "home"
    (home / "models").mkdir(parents=True)
    write_model(home / "models" / "mine", n_layers=2)
    shutil.copy(TASK, home / "my.toml")
    (home / "train.jsonl").write_text(EXAMPLES)
    return home


@pytest.fixture(scope="module")
def elsewhere(disk: Path) -> Path:
    (disk / "elsewhere").mkdir()
    return disk / "elsewhere"


@pytest.fixture(scope="module")
def made(home: Path) -> RunOutcome:
    """A run that was asked for from ``home``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(shared_cache()))
        patch.chdir(home)
        settings = {"data": Path("train.jsonl"), "task": "my.toml", "schedule": "mezo", "seq_len": 64}
        rate = OptimizerConfig(lr=1e-2)
        config = config_for(Path("models/mine"), Path("out"), optimizer=rate, seed=5, **settings)
        return run(config, RunProgress(), "memsim run --model models/mine")


def test_a_run_goes_on_from_another_directory(
    home: Path, elsewhere: Path, made: RunOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere)
    longer = resume(read_resumption(home / "out", {"steps": 3}, command="memsim run --steps 3"), RunProgress())
    assert (longer.result.exit_reason, len(longer.result.steps)) == ("done", 3)
    request = longer.result.request
    assert request is not None and made.result.request is not None
    assert request.commands == ("memsim run --model models/mine", "memsim run --steps 3")
    assert request.started == made.result.request.started
    assert request.files == made.result.request.files


def test_the_adapter_names_its_model_by_its_path(home: Path, made: RunOutcome) -> None:
    settings = json.loads((home / "out/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(home / "models/mine")


def test_a_seed_log_is_replayed_from_another_directory(
    home: Path, elsewhere: Path, made: RunOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere)
    steps = replay_seeds(home / "out/seeds.jsonl", None, Path("again"), lambda text: None)
    assert steps == len(list(read_seed_log(home / "out/seeds.jsonl")[1]))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (elsewhere / "again" / name).read_bytes() == (home / "out" / name).read_bytes()


def test_a_record_holds_what_was_asked_for(home: Path, made: RunOutcome) -> None:
    request = made.result.request
    assert request is not None
    found = request.settings
    assert (found["optimizer.lr"], found["seed"], found["lora.alpha"], found["lora.rank"]) == (1e-2, 5, 8.0, 4)
    assert (found["model"], found["task"]) == (str(home / "models/mine"), str(home / "my.toml"))
    assert found["zeroth_order.eps"] == 1e-3
    digest = hashlib.sha256(EXAMPLES.encode()).hexdigest()
    assert request.files["data"] == digest
    assert request.files["task"] == hashlib.sha256(TASK.read_bytes()).hexdigest()
    assert request.started.endswith("+00:00")
    assert read_task(home / "my.toml").options


def test_a_baseline_names_no_directory_of_its_run(tmp_path: Path, home: Path, made: RunOutcome) -> None:
    config = config_for(home / "models/mine", None, seq_len=64)
    write_baseline(tmp_path / "baseline.json", from_run(made.directory, config, made.result))
    assert read_baseline(tmp_path / "baseline.json").result.request is None
    assert str(home) not in (tmp_path / "baseline.json").read_text().replace(
        json.loads((tmp_path / "baseline.json").read_text())["settings"]["model"], ""
    )


def test_rates_in_a_seed_log_are_those_of_the_updates(made: RunOutcome) -> None:
    header, steps = read_seed_log(made.directory / "seeds.jsonl")
    assert {step.lr for step in steps} == {1e-2}
    assert header.model == str(made.directory.parent / "models/mine")


def test_names_mean_the_same_everywhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert identifier("Tiny") == "tiny"
    assert identifier("Owner/Name") == "Owner/Name"
    assert identifier("models/mine") == str(home / "models/mine")  # not a hub id: it is there
    assert identifier("./tiny") == str(home / "tiny")
    config = RunConfig(budget_bytes=10**9, task="sst2", data=Path("x"), scratch=Path("s"))
    assert (located(config).task, located(config).data) == ("sst2", home / "x")
    assert located(located(config)) == located(config)


def test_a_failed_run_says_why_in_its_record(home: Path, tmp_path: Path, disk: Path) -> None:
    killed = run_toy(home / "models/mine", tmp_path / "out", seq_len=16, balloon_bytes=10**9)
    record = read_result(tmp_path / "out/result.json")
    assert record.exit_reason == killed.result.exit_reason == "killed_at_cap"
    assert record.message is not None and record.message.startswith("killed at the cap")
