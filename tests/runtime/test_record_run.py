"""``memsim run --record`` and ``memsim replay``: a capped run leaves a recording, and a device judges it."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from capped_runs import (
    ADAPTER_FILES,
    RUN_FILES,
    cache,
    files_in,
    left_behind,
    run_toy,
    shared_cache,
    write_model,
)
from memsim.cap.footprint import group_error_bytes
from memsim.cli.predicting.replay import command
from memsim.errors import InputError, UsageError
from memsim.planner.plan import plan_memory
from memsim.planner.separate import in_separate_arrays
from memsim.result_file import from_json
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.recording_cost import recorded_steps
from memsim.simulator.device_file import find_device
from memsim.simulator.recordings.recording import read_recording
from memsim.simulator.simulate import simulate
from memsim.units import MIB
from memsim.weights.pack import Pack

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

PHONE = "iphone-15-pro-max"
SEQ_LEN = 512


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "record-model")


@pytest.fixture(scope="module")
def recorded(pack: Pack, disk: Path) -> RunOutcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(shared_cache()))
        return run_toy(pack.directory, disk / "recorded", seq_len=SEQ_LEN, steps=3, record=True)


def replay(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(command, [*map(str, arguments)])


def test_a_recorded_run_leaves_its_capture_and_says_what_it_cost(recorded: RunOutcome) -> None:
    assert recorded.result.exit_reason == "done"
    assert files_in(recorded.directory) == RUN_FILES | ADAPTER_FILES | {"memray.bin"}
    assert set(left_behind(recorded.directory)) == {"memray.bin"}
    recording = recorded.result.recording
    assert recording is not None
    assert recording.steps == recorded_steps(3) == 2
    assert recording.capture_bytes == (recorded.directory / "memray.bin").stat().st_size
    assert recording.tracker_bytes > MIB  # memray alone is
    times = [step.step_s for step in recorded.result.steps]
    assert (recording.recorded_step_s, recording.unrecorded_step_s) == (times[1], times[2])
    assert "memray" in recorded.result.versions


def test_the_footprint_is_planned_without_an_arena(recorded: RunOutcome) -> None:
    result = recorded.result
    recording = read_recording(recorded.directory)
    separate = in_separate_arrays(recording.program, plan_memory(recording.program))
    assert result.planned_peak_bytes == separate.peak_bytes > recording.peak_bytes
    assert result.planned_footprint_bytes is not None and result.peak_footprint_bytes is not None
    # Holes in the heap and memray's tables are planned for, by what larger models needed.
    error = result.peak_footprint_bytes - result.planned_footprint_bytes
    assert abs(error) <= 5 * MIB + group_error_bytes()


def test_recording_takes_no_more_memory_with_each_step(pack: Pack, disk: Path) -> None:
    few, many = (
        run_toy(pack.directory, disk / f"recorded-{steps}", seq_len=64, steps=steps, record=True) for steps in (3, 100)
    )
    capture_bytes = many.result.recording.capture_bytes  # type: ignore[union-attr]
    assert capture_bytes > 8 * MIB
    growth = many.result.peak_footprint_bytes - few.result.peak_footprint_bytes  # type: ignore[operator]
    # What is recorded was all of it held once; what grows a little is memray's own tables.
    assert growth < capture_bytes / 2


@pytest.mark.parametrize(("steps", "recorded"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (50, 48)])
def test_the_last_steps_are_not_recorded(steps: int, recorded: int) -> None:
    assert recorded_steps(steps) == recorded


def test_the_recording_is_the_plan(recorded: RunOutcome) -> None:
    recording = read_recording(recorded.directory)
    plan = plan_memory(recording.program)
    assert recording.n_steps == 2
    assert [node.live_bytes for node in recording.nodes] == [plan.live_bytes[node.index] for node in recording.nodes]
    assert recording.nodes[recording.peak].index == plan.peak_node
    step = recorded.result.steps[0]
    assert sum(traffic.paged_in_bytes for traffic in recording.traffic) == step.bytes_paged_in
    assert sum(traffic.unpacked_bytes for traffic in recording.traffic) == step.bytes_unpacked
    assert sum(work.flops for work in recording.work) > 0
    largest = recording.held_at(recording.peak)[0]
    assert largest == next((name, n) for name, n in plan.held if name != "pinned")


def test_replay_says_what_happens_on_a_phone(recorded: RunOutcome) -> None:
    done = replay(recorded.directory, "--device", PHONE, "--budget", "1GB")
    assert done.exit_code == 0, done.output
    for text in ("iPhone 15 Pro Max", "fits under 1,000.0 MB", "as recorded", "page-in", "interpreter, kernels"):
        assert text in done.stdout
    record = from_json(replay(recorded.directory, "--device", PHONE, "--json", "-").stdout)
    recording = read_recording(recorded.directory)
    assert (record.command, record.source, record.schedule, record.seq_len) == ("replay", "simulated", "mebp", SEQ_LEN)
    assert record.peak_by_value == dict(recording.held_at(recording.peak))
    assert sum(record.peak_by_value.values()) == recording.peak_bytes
    assert record.peak_working_set_bytes is not None
    assert 0 <= record.peak_working_set_bytes - recording.peak_bytes <= recording.peak_bytes // 1000  # page tables
    assert record.simulated is not None
    figures = record.simulated.figures
    split = [figures[name].nominal for name in ("compute_s", "unpack_s", "page_in_s", "spill_s")]
    assert all(seconds > 0 for seconds in split)
    assert sum(split) == pytest.approx(figures["warm_step_s"].nominal)
    assert record.steps[0].bytes_spilled == recorded.result.steps[0].bytes_spilled


def test_over_the_budget_it_is_killed_at_the_right_node_and_one_percent_above_the_peak_survives(
    recorded: RunOutcome,
) -> None:
    recording = read_recording(recorded.directory)
    peak = simulate(recording.trace(), find_device(PHONE), 1).nominal.peak_bytes
    killed = replay(recorded.directory, "--device", PHONE, "--budget", f"{peak - 1}B", "--json", "-")
    assert killed.exit_code == 3
    record = from_json(killed.stdout)
    assert (record.fits, record.exit_reason) == (False, "killed")
    assert record.simulated is not None
    assert record.simulated.limits["foreground"].killed_at_node == plan_memory(recording.program).peak_node
    largest = recording.held_at(recording.peak)[0][0]
    assert f"with {largest} " in killed.stderr and "killed at node" in killed.stderr
    # Below what some earlier node holds, that one is the first.
    lower = peak - recording.peak_bytes // 2
    first = next(node.index for node in recording.nodes if node.live_bytes > recording.peak_bytes // 2)
    record = from_json(replay(recorded.directory, "--device", PHONE, "--budget", f"{lower}B", "--json", "-").stdout)
    assert record.simulated is not None
    # Page tables may bring it one node forward.
    assert record.simulated.limits["foreground"].killed_at_node == pytest.approx(first, abs=1)

    survives = replay(recorded.directory, "--device", PHONE, "--budget", f"{peak + peak // 100}B", "--json", "-")
    assert survives.exit_code == 0
    assert from_json(survives.stdout).fits


def test_the_same_run_recorded_again_gets_the_same_verdict(recorded: RunOutcome, pack: Pack, tmp_path: Path) -> None:
    again = run_toy(pack.directory, tmp_path / "again", seq_len=SEQ_LEN, steps=3, record=True)
    first, second = (
        from_json(replay(run.directory, "--budget", "70MB", "--json", "-").stdout) for run in (recorded, again)
    )
    assert first.simulated is not None and second.simulated is not None
    assert first.simulated.limits == second.simulated.limits
    assert second.peak_footprint_bytes == pytest.approx(first.peak_footprint_bytes, rel=1e-3)
    assert [step.loss for step in again.result.steps] == [step.loss for step in recorded.result.steps]


def test_without_the_capture_there_is_no_replay(recorded: RunOutcome, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(recorded.directory, bare)
    (bare / "memray.bin").unlink()
    error = replay(bare).exception
    assert isinstance(error, InputError)
    assert "has no memray.bin" in str(error) and "--record" in str(error)


def test_a_capture_cut_short_is_no_recording(recorded: RunOutcome, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(recorded.directory, cut)
    data = (cut / "memray.bin").read_bytes().rstrip(b"\0")
    (cut / "memray.bin").write_bytes(data[: len(data) // 2])
    error = replay(cut).exception
    assert isinstance(error, InputError)
    assert "is cut short" in str(error)
    # A program of other nodes.
    header, *lines = (recorded.directory / "program.jsonl").read_text().splitlines()
    (cut / "memray.bin").write_bytes((recorded.directory / "memray.bin").read_bytes())
    changed = json.loads(header)
    changed["n_nodes"] -= 1
    (cut / "program.jsonl").write_text("\n".join([json.dumps(changed | {"repeat": None}), *lines[:-1]]) + "\n")
    assert "is not a" in str(replay(cut).exception)


def test_a_run_killed_while_it_is_recorded_leaves_its_whole_steps(pack: Pack, tmp_path: Path) -> None:
    killed = run_toy(
        pack.directory,
        tmp_path / "killed",
        seq_len=SEQ_LEN,
        steps=3,
        record=True,
        balloon_bytes=400 * 10**6,
        plan_check=False,
    )
    assert killed.result.exit_reason == "killed_at_cap"
    assert (tmp_path / "killed" / "memray.bin").exists()
    assert "holds no whole step" in str(replay(tmp_path / "killed").exception)


def test_what_cannot_be_recorded_is_refused(pack: Pack, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 2000)
    with pytest.raises(UsageError, match="--record records training steps alone"):
        run_toy(pack.directory, tmp_path / "out", record=True, eval_data=text)


def test_the_record_of_a_replay_is_a_result(recorded: RunOutcome) -> None:
    record = from_json(replay(recorded.directory, "--json", "-", "--steps", "2").stdout)
    assert len(record.steps) == 2
    assert (record.model, record.optimizer) == (recorded.result.model, recorded.result.optimizer)
    assert record.kernel_peak_bytes is None and record.evals == ()
