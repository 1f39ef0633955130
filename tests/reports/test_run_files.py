from dataclasses import replace
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.reports.run_files import open_run
from recorded import events, toy_run_plan, write_run


def test_a_run_is_what_was_written(tmp_path: Path) -> None:
    plan = toy_run_plan()
    run = open_run(write_run(tmp_path / "one", plan))
    assert run.name == "one"
    assert run.program == plan.train.program
    assert run.plan.live_bytes.tolist() == plan.memory.live_bytes.tolist()
    assert list(run.events()) == events(plan)
    assert {event.step for event in run.events(1)} == {1}
    assert run.timed_step == 2  # of 0.9, 0.5 and 0.7 s


def test_sizes_are_in_the_unit_of_the_budget(tmp_path: Path) -> None:
    assert open_run(write_run(tmp_path / "mb")).decimal
    assert not open_run(write_run(tmp_path / "mib", budget_bytes=80 << 20)).decimal
    assert not open_run(write_run(tmp_path / "none", budget_bytes=None)).decimal


def test_a_run_that_finished_no_step_shows_its_first(tmp_path: Path) -> None:
    assert open_run(write_run(tmp_path / "killed", steps=(), step_s=None, exit_reason="killed_at_cap")).timed_step == 0


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run: it has no result\.json"):
        open_run(tmp_path)
    with pytest.raises(InputError, match="is a simulated record"):
        open_run(write_run(tmp_path / "simulated", source="simulated"))
    directory = write_run(tmp_path / "without")
    (directory / "program.jsonl").unlink()
    with pytest.raises(InputError, match=r"cannot read .*program\.jsonl: No such file"):
        open_run(directory)


def test_events_of_another_program_are_refused(tmp_path: Path) -> None:
    good = events(toy_run_plan(), 1)
    bad = {
        "a-node-too-many": (replace(good[5], node=10**6), "as node 1000000"),
        "another-op": (replace(good[5], op="x\ny"), r"has 'x\\ny' as node 5"),
        "out-of-order": (replace(good[5], start_s=0.0), "before the one before it"),
    }
    for name, (event, message) in bad.items():
        directory = write_run(tmp_path / name, changed=[*good[:5], event, *good[6:]])
        with pytest.raises(InputError, match=message) as refused:
            list(open_run(directory).events())
        assert "\n" not in str(refused.value)
