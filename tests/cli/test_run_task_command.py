"""``memsim run`` with schemes and tasks, as a user types it: what it prints, writes, learns and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from capped_runs import RUN_FILES, cache, files_in, memsim_command, write_model
from memsim.cli import main
from memsim.result_file import read_result
from memsim.weights.pack import Pack
from memsim.weights.trained import TRAINED_FILE

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

FILMS = [
    {"sentence": "a gripping and moving film", "label": 1},
    {"sentence": "tedious, clumsy and far too long", "label": 0},
    {"sentence": "a warm and clever story", "label": 1},
    {"sentence": "dull from first to last, as long as that is", "label": 0},
]
COPA = [
    {"premise": "It rained.", "choice1": "It got wet.", "choice2": "The sun set.", "question": "effect", "label": 0},
    {"premise": "She ate.", "choice1": "She slept.", "choice2": "She was hungry.", "question": "cause", "label": 1},
]  # fmt: skip


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "task-model")


def examples(directory: Path, lines: list[dict]) -> Path:
    path = directory / "examples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def arguments(pack: Pack, *rest: object) -> list[object]:
    return ["run", "--budget", "400MB", "--model", pack.directory, "--threads", 1, "--out", "out", *rest]


def ran(pack: Pack, directory: Path, *rest: object) -> "subprocess.CompletedProcess[str]":
    command = memsim_command(*arguments(pack, *rest))
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_a_classifier_learns_its_examples(pack: Pack, tmp_path: Path) -> None:
    data = examples(tmp_path, FILMS)
    task = ["--scheme", "head", "--task", "sst2", "--data", data, "--eval-data", data, "--seq-len", 40]
    done = ran(pack, tmp_path, *task, "--steps", 24, "--lr", "0.05")
    result = read_result(tmp_path / "out" / "result.json")
    assert (result.task, result.scheme, result.lora_rank, result.trainable_parameters) == ("sst2", "head", None, 512)
    assert [evaluation.accuracy for evaluation in result.evals][-1] == 1.0
    assert result.evals[-1].loss is not None and result.evals[-1].loss < 0.1
    assert files_in(tmp_path / "out") == RUN_FILES | {TRAINED_FILE}
    rows = {line[:16].strip(): line[16:] for line in done.stdout.splitlines()}
    assert rows["model"] == "task-model, mebp, seq 40, classifier head"
    assert rows["task"] == "sst2: options are chosen by a classifier"
    assert rows["eval at 24"].endswith("accuracy 100.0%")
    # "... that is It was" is 50 bytes long.
    assert f"1 of the 4 examples of {data} are cut to 40 tokens" in done.stderr.splitlines()


def test_an_option_is_chosen_by_its_likelihood(pack: Pack, tmp_path: Path) -> None:
    data = examples(tmp_path, COPA)
    task = ["--scheme", "prefix", "--virtual-tokens", 4, "--task", "copa", "--no-template", "--data", data]
    done = ran(pack, tmp_path, *task, "--eval-data", data, "--seq-len", 48, "--steps", 1, "--schedule", "tiled")
    result = read_result(tmp_path / "out" / "result.json")
    assert (result.task, result.scheme) == ("copa, no template", "prefix")
    assert result.trainable_parameters == 4 * 4 * 2 * 64
    assert result.evals[0].accuracy in (0.0, 0.5, 1.0)
    assert "chosen by the mean of the answers' log likelihoods" in done.stdout
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_a_task_made_of_shipped_text_needs_no_data(pack: Pack, tmp_path: Path) -> None:
    done = ran(pack, tmp_path, "--task", "docs-agreement", "--seq-len", 96, "--steps", 1, "--schedule", "tiled")
    assert read_result(tmp_path / "out" / "result.json").task == "docs-agreement"
    assert "0 of the 620 examples of" in done.stderr


@pytest.mark.parametrize(
    ("rest", "code", "words"),
    [
        (["--scheme", "head"], 2, "plain text has none: choose a classification task with --task"),
        (["--scheme", "head", "--task", "copa", "--data", "x.jsonl"], 2, "brings its own options"),
        (["--scheme", "prompt", "--virtual-tokens", 0], 2, "--virtual-tokens 0 is below 1"),
        (["--scheme", "prompt", "--seq-len", 2040], 2, "--seq-len 2040 and 20 virtual tokens is above the model's"),
        (
            ["--task", "sst3", "--data", "x.jsonl"],
            1,
            "no task called 'sst3'; tasks: copa, docs-agreement, sst2, winogrande",
        ),
        (["--task", "sst2"], 2, "--task needs --data: a JSONL file of its examples"),
        (["--task", "sst2", "--data", "examples.jsonl"], 1, "line 1: the field 'sentence' is missing"),
        (["--task", "winogrande", "--data", "none.jsonl"], 1, "no text file at none.jsonl"),
    ],
)
def test_what_cannot_work_is_one_line(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rest: list,
    code: int, words: str,
) -> None:  # fmt: skip
    examples(tmp_path, COPA)
    (tmp_path / "x.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["memsim", *map(str, arguments(pack, *rest))])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().err
    assert int(ended.value.code or 0) == code, printed
    assert words in printed.splitlines()[-1]
    assert "Traceback" not in printed
