"""The file of steps of a run, which a resumed run believes only if it is that of the checkpoint."""

import json
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.results import Evaluation, StepResult
from memsim.run_directory.checkpoints import Checkpoint, Checkpoints, state_file_name
from memsim.run_directory.steps_file import STEPS_FILE, History
from special_files import SPECIAL


def saved(out: Path, n_steps: int = 3) -> Checkpoint:
    """Write the history of a run, an evaluation after its steps, and a checkpoint of it."""
    (out / "checkpoints").mkdir(parents=True)
    history = History(out, None, ())
    for step in range(n_steps):
        history.add_step(StepResult(loss=3.0 - step, step_s=0.5), {"rope": 0.1 * step})
    history.add_evaluation(Evaluation(step=n_steps, loss=1.5, accuracy=0.25))
    (out / "checkpoints" / state_file_name(n_steps)).write_bytes(b"state")
    digest = "0ee7d27e1d4d1d9ab6c4ac2bd3a5ac3db6b1bf3ba6bd0c05d3a9a0d9d0ac5b1d"
    history.commit(n_steps, digest, 1.0, 10, 10, None)
    record = json.loads((out / "checkpoints" / "step-00000003.json").read_text())["checkpoint"]
    del record["schema"]
    return Checkpoint(**record)


def test_a_history_goes_on_with_what_its_checkpoint_knows(tmp_path: Path) -> None:
    start = saved(tmp_path)
    with (tmp_path / STEPS_FILE).open("ab") as file:
        file.write(b'{"step": {"loss": 9.0}}\n')  # of a step that no checkpoint counts
    history = History(tmp_path, start, ())
    assert [step.loss for step in history.steps] == [3.0, 2.0, 1.0]
    history.add_step(StepResult(loss=0.5), {})
    (tmp_path / "checkpoints" / state_file_name(4)).write_bytes(b"state")
    history.commit(4, start.sha256, 2.0, 10, 10, None)
    again = json.loads((tmp_path / "checkpoints" / "step-00000004.json").read_text())["checkpoint"]
    del again["schema"]
    assert [step.loss for step in History(tmp_path, Checkpoint(**again), ()).steps] == [3.0, 2.0, 1.0, 0.5]


def swapped(lines: list[str]) -> list[str]:
    return [lines[1], lines[0], *lines[2:]]


def doubled(lines: list[str]) -> list[str]:
    return [lines[0], lines[0], *lines[2:]]


def edited(lines: list[str]) -> list[str]:
    return [lines[0].replace("3.0", "2.9"), *lines[1:]]


def cut(lines: list[str]) -> list[str]:
    return lines[:-1]


@pytest.mark.parametrize("change", [swapped, doubled, edited, cut])
def test_lines_that_are_not_where_they_were_are_noticed(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    start = saved(tmp_path)
    path = tmp_path / STEPS_FILE
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(InputError, match=r"steps\.jsonl is damaged: it does not match the checksum in the checkpoint"):
        History(tmp_path, start, ())


@pytest.mark.parametrize("what", SPECIAL)
def test_a_state_that_is_no_file_is_no_checkpoint(tmp_path: Path, what: str) -> None:
    saved(tmp_path)
    state = Checkpoints(tmp_path).state_path(3)
    state.unlink()
    SPECIAL[what](state)
    complaints: list[str] = []
    assert Checkpoints(tmp_path).newest(complaints.append) is None
    assert [f"it is {what}, not a regular file; going back" in line for line in complaints] == [True]
