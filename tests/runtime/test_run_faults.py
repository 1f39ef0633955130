"""Disks that fill up, files that change and groups that vanish under a run: one line, and the run can go on."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import memsim.run_directory.steps_file
from capped_runs import (
    ADAPTER_FILES,
    RUN_FILES,
    best_enforcement,
    cache,
    files_in,
    groups,
    left_behind,
    run_in_step,
    run_toy,
    shared_cache,
    workers,
    write_model,
)
from disk_images import fill, small_disk
from memsim.errors import InputError, MemsimError, WorkerError
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.resume import read_resumption, resume
from memsim.runtime.run_progress import RunProgress, StepDone
from memsim.weights.pack import Pack

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name

SETTINGS = {"seq_len": 16, "steps": 6, "checkpoint_every": 2}
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "fault-model")


@pytest.fixture(scope="module")
def whole(pack: Pack, disk: Path) -> RunOutcome:
    """A run to which nothing happens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(shared_cache()))
        return run_toy(pack.directory, disk / "unharmed", **SETTINGS)


def assert_goes_on_as(whole: RunOutcome, directory: Path) -> None:
    assert left_behind(directory) == []
    outcome = resume(read_resumption(directory, {}), RunProgress())
    assert outcome.result.exit_reason == "done"
    assert (directory / ADAPTER).read_bytes() == (whole.directory / ADAPTER).read_bytes()
    assert files_in(directory) == RUN_FILES | ADAPTER_FILES


def after_step(number: int, act) -> RunProgress:  # type: ignore[no-untyped-def]
    def on_step(step: StepDone) -> None:
        if step.step == number:
            act()

    return RunProgress(step=on_step)


@pytest.mark.parametrize("free_kib", [0, 900, pytest.param(100, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_leaves_a_run_that_goes_on(
    pack: Pack, whole: RunOutcome, tmp_path: Path, free_kib: int
) -> None:
    with small_disk(tmp_path, 24 << 20) as disk:
        out, fillers = disk / "out", []
        progress = after_step(3, lambda: fillers.append(fill(disk, free_kib << 10)))
        with pytest.raises(MemsimError) as ended:
            outcome = run_in_step(pack.directory, out, progress, **SETTINGS)
            raise WorkerError(outcome.message)  # the worker said so, and a record could be written
        assert "No space left on device" in str(ended.value)
        assert "\n" not in str(ended.value)
        assert str(ended.value).endswith("goes on after step 2")
        assert not (out / ADAPTER).exists()
        fillers[0].unlink()
        assert_goes_on_as(whole, out)


def test_a_checkpoint_that_cannot_be_recorded_leaves_the_one_before(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, whole: RunOutcome, tmp_path: Path
) -> None:
    commit = memsim.run_directory.steps_file.Checkpoints.commit

    def full(self, checkpoint) -> None:  # type: ignore[no-untyped-def]
        if checkpoint.step > 2:
            raise InputError("cannot write it: No space left on device")
        commit(self, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(memsim.run_directory.steps_file.Checkpoints, "commit", full)
        with pytest.raises(
            InputError, match=r"No space left on device; `memsim run --resume .*` goes on after step 2$"
        ):
            run_toy(pack.directory, tmp_path / "out", **SETTINGS)
    assert not list((tmp_path / "out" / "checkpoints").glob("step-00000004*"))  # it never counted
    assert_goes_on_as(whole, tmp_path / "out")


def test_a_weight_file_that_is_cut_short_under_the_run_is_one_line(
    pack: Pack, whole: RunOutcome, tmp_path: Path
) -> None:
    shutil.copytree(pack.directory, tmp_path / "model")
    path = tmp_path / "model" / "block_002.safetensors"
    data = path.read_bytes()
    cut = after_step(3, lambda: os.truncate(path, 4096))
    outcome = run_in_step(tmp_path / "model", tmp_path / "out", cut, **SETTINGS)
    assert outcome.result.exit_reason == "error"
    assert outcome.message.startswith("the worker ended with signal SIGBUS at step ")
    assert ": a mapped file could not be read: it was cut short, or its disk failed; " in outcome.message
    with pytest.raises(InputError, match=r"block_002\.safetensors"):
        resume(read_resumption(tmp_path / "out", {}), RunProgress())
    path.write_bytes(data)
    assert_goes_on_as(whole, tmp_path / "out")


def test_a_flipped_bit_in_a_weight_is_found_before_a_step(pack: Pack, whole: RunOutcome, tmp_path: Path) -> None:
    shutil.copytree(pack.directory, tmp_path / "model")
    path = tmp_path / "model" / "block_001.safetensors"
    data = path.read_bytes()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    stopped = run_in_step(tmp_path / "model", tmp_path / "out", after_step(3, interrupt), **SETTINGS)
    n_steps = len(stopped.result.steps)
    path.write_bytes(data[:-7] + bytes([data[-7] ^ 16]) + data[-6:])
    outcome = resume(read_resumption(tmp_path / "out", {}), RunProgress())
    assert (outcome.result.exit_reason, len(outcome.result.steps)) == ("error", n_steps)
    assert "block_001.safetensors does not match its checksum" in outcome.message
    path.write_bytes(data)
    assert_goes_on_as(whole, tmp_path / "out")


@pytest.mark.parametrize("verify", ["first", "full"])
def test_a_bit_that_flips_during_the_run_is_found_if_every_page_in_is_checked(
    pack: Pack, whole: RunOutcome, tmp_path: Path, verify: str
) -> None:
    shutil.copytree(pack.directory, tmp_path / "model")
    path = tmp_path / "model" / "block_002.safetensors"
    data = path.read_bytes()

    def flip() -> None:
        # In place, as a disk does it: the worker has mapped this file, and a new one would not be seen.
        with path.open("r+b") as file:
            file.seek(-7, os.SEEK_END)
            file.write(bytes([data[-7] ^ 16]))

    outcome = run_in_step(tmp_path / "model", tmp_path / "out", after_step(3, flip), verify=verify, **SETTINGS)
    if verify == "first":
        assert (outcome.result.exit_reason, len(outcome.result.steps)) == ("done", 6)  # so the other can fail
        return
    assert outcome.result.exit_reason == "error"
    assert "block_002.safetensors does not match its checksum: it changed since it was packed" in outcome.message
    path.write_bytes(data)
    assert_goes_on_as(whole, tmp_path / "out")


def test_a_group_that_is_removed_under_the_run_ends_it(pack: Pack, whole: RunOutcome, tmp_path: Path) -> None:
    if not best_enforcement().startswith("cgroup"):
        pytest.skip("no cgroup of our own here")

    def remove() -> None:
        (worker,) = workers()
        for group in groups(os.getpid()):
            if str(worker.pid) in (group / "cgroup.procs").read_text().split():
                (group.parent / "cgroup.procs").write_text(str(worker.pid))
                group.rmdir()

    outcome = run_in_step(pack.directory, tmp_path / "out", after_step(3, remove), **SETTINGS)
    assert outcome.result.exit_reason == "error"
    assert outcome.message.startswith("the cgroup of the worker has gone (No such device): nothing holds it to its cap")
    assert_goes_on_as(whole, tmp_path / "out")


# Executed first by the worker and the process that tokenizes: their time of day jumps by days, back and forth.
JUMPING = """
import time
_now, _calls = time.time, [0]
def _jumping():
    _calls[0] += 1
    return _now() + (-1) ** _calls[0] * 1e6 * (_calls[0] % 7)
time.time = _jumping
time.time_ns = lambda: int(_jumping() * 1e9)
"""


def test_a_clock_that_jumps_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, whole: RunOutcome, tmp_path: Path
) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(JUMPING)
    paths = [str(tmp_path / "clock"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    scope: dict[str, object] = {}
    monkeypatch.setattr(time, "time", time.time)
    monkeypatch.setattr(time, "time_ns", time.time_ns)
    exec(JUMPING, scope)  # in this process too, which is the command
    assert abs(time.time() - time.time()) > 5e5

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    stopped = run_in_step(pack.directory, tmp_path / "out", after_step(3, interrupt), **SETTINGS)
    assert stopped.result.exit_reason == "interrupted"
    assert_goes_on_as(whole, tmp_path / "out")
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    starts = [event["start_s"] for event in events]
    assert starts == sorted(starts) and starts[-1] < 1e5  # less than any jump
    assert all(0 <= event["seconds"] < 1e5 for event in events)


def test_what_a_dead_command_never_named_is_removed_by_the_next(pack: Pack, tmp_path: Path) -> None:
    dead, living = tmp_path / ".memsim-1-99999999999-1", tmp_path / f".memsim-{os.getpid()}-1"
    mine = tmp_path / ".memsim-notes"
    for directory in (dead, mine):
        (directory / "checkpoints").mkdir(parents=True)
    run_toy(pack.directory, tmp_path / "out", **SETTINGS)
    assert not dead.exists() and mine.exists() and not living.exists()
