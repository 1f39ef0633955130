"""Real fine-tuning runs of a small model in a worker that is really capped."""

import ctypes
import json
import mmap
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capped_runs import (
    ADAPTER_FILES,
    BUDGET,
    LORA,
    MB,
    RUN_FILES,
    best_enforcement,
    cache,
    config_for,
    files_in,
    left_behind,
    memsim_command,
    one_thread,
    run_toy,
    shared_cache,
    write_model,
)
from memsim.cap.footprint import group_error_bytes
from memsim.data.tokenize import prepare_tokens
from memsim.data.windows import Batches, TokenFile
from memsim.errors import InputError
from memsim.execution.session import Session
from memsim.ir.serialize import load_program
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.result_file import read_result
from memsim.run_directory.events import read_events
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.run_progress import RunProgress
from memsim.schedules.optimizers import OptimizerConfig
from memsim.units import MIB
from memsim.weights.adapters import read_adapter
from memsim.weights.pack import Pack
from toy import BY_BYTES

pytestmark = pytest.mark.usefixtures("cache")
assert cache and one_thread  # fixtures, found by name

# What a plan cannot know: interpreter objects that come and go, and the allocator's rounding.
NOISE_BYTES = MIB


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "run-model")


@pytest.fixture(scope="module")
def finished(pack: Pack, disk: Path) -> RunOutcome:
    """One run that is looked at from all sides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(shared_cache()))
        return run_toy(pack.directory, disk / "finished", seq_len=1024, threads=0)


def test_a_run_that_fits_writes_its_record_its_events_and_its_adapter(finished: RunOutcome, pack: Pack) -> None:
    result, out = finished.result, finished.directory
    assert (result.exit_reason, result.fits, finished.message) == ("done", True, "")
    assert files_in(out) == RUN_FILES | ADAPTER_FILES
    assert left_behind(out) == []
    assert replace(read_result(out / "result.json"), versions=result.versions) == result
    assert result.enforcement == best_enforcement()
    assert (result.weights, result.page_cache, result.model) == ("synthetic", "warm", "run-model")
    assert all(step.loss is not None and step.step_s is not None and step.step_s > 0 for step in result.steps)
    assert sum(result.time_by_op_s.values()) <= (result.step_s or 0)

    lora, adapter = read_adapter(out, pack.config)
    assert (lora.rank, lora.alpha) == (LORA.rank, LORA.alpha)
    # Two steps of AdamW move every B away from zero.
    assert all(np.abs(values).max() > 0 for values in adapter.values())


def test_every_executed_node_is_an_event(finished: RunOutcome) -> None:
    program = load_program(finished.directory / "program.jsonl").program
    events = list(read_events(finished.directory / "events.jsonl"))
    order = list(program.order())
    assert [event.node for event in events] == order * 2
    assert [event.step for event in events] == [0] * len(order) + [1] * len(order)
    for event in events:
        node = program.nodes[event.node]
        assert (event.op, event.phase) == (node.op, node.phase)
        assert event.block == (int(node.part[6:]) if node.part.startswith("block_") else None)
    starts = [event.start_s for event in events]
    assert starts[0] == 0
    assert starts == sorted(starts)
    page_ins = sum(event.bytes for event in events if event.op == "page_in" and event.step == 0)
    assert page_ins == finished.result.steps[0].bytes_paged_in


def test_the_peak_is_within_the_budget_and_within_five_percent_of_the_plan(finished: RunOutcome) -> None:
    result = finished.result
    assert result.peak_footprint_bytes is not None and result.planned_footprint_bytes is not None
    assert result.peak_footprint_bytes <= BUDGET
    assert result.peak_footprint_bytes == pytest.approx(result.planned_footprint_bytes, rel=0.05)
    # Five percent of a footprint that is nearly all interpreter say little: the working set itself is as planned.
    assert result.peak_working_set_bytes is not None and result.planned_peak_bytes is not None
    assert result.planned_peak_bytes > 20 * MB
    error = result.peak_working_set_bytes - result.planned_peak_bytes
    # It is the difference of two readings of the group, at the baseline and at the peak, each off by as much.
    assert abs(error) <= NOISE_BYTES + 2 * group_error_bytes()
    peaks = [step.peak_footprint_bytes or 0 for step in result.steps]
    assert all(result.baseline_footprint_bytes < peak <= result.peak_footprint_bytes for peak in peaks)


def test_events_of_a_group_show_the_arena_filling(finished: RunOutcome) -> None:
    if not (best_enforcement().startswith("cgroup") or best_enforcement() == "systemd"):
        pytest.skip("no cgroup here: the footprint is not read after each node")
    footprints = [event.footprint_bytes or 0 for event in read_events(finished.directory / "events.jsonl")]
    planned = finished.result.planned_peak_bytes or 0
    assert max(footprints) - footprints[0] > planned / 2
    assert max(footprints) <= (finished.result.peak_footprint_bytes or 0)


def test_a_second_run_right_after_gives_the_same_losses(finished: RunOutcome, pack: Pack, tmp_path: Path) -> None:
    again = run_toy(pack.directory, tmp_path / "again", seq_len=1024, threads=0)
    assert again.result.exit_reason == "done"
    assert [step.loss for step in again.result.steps] == [step.loss for step in finished.result.steps]
    weights = "adapter_model.safetensors"
    assert (again.directory / weights).read_bytes() == (finished.directory / weights).read_bytes()


def test_a_budget_of_the_peak_and_the_file_floor_is_enough(finished: RunOutcome, pack: Pack, tmp_path: Path) -> None:
    budget = (finished.result.peak_footprint_bytes or 0) + (finished.result.file_floor_bytes or 0)
    tight = run_toy(pack.directory, tmp_path / "tight", seq_len=1024, budget_bytes=budget)
    assert tight.result.exit_reason == "done"
    assert (tight.result.peak_footprint_bytes or 0) <= budget


@pytest.mark.usefixtures("one_thread")
def test_the_worker_computes_what_a_session_computes(pack: Pack, disk: Path, tmp_path: Path) -> None:
    text, other = tmp_path / "text.jsonl", tmp_path / "eval.txt"
    text.write_text("".join(json.dumps({"text": f"line {n} of {n * n}\n" * 9}) + "\n" for n in range(60)))
    other.write_text("another text, to evaluate on. " * 60)
    momentum = OptimizerConfig("momentum", lr=1e-2)
    settings = {"seq_len": 64, "steps": 3, "accumulate": 2, "optimizer": momentum, "seed": 5}
    outcome = run_toy(
        pack.directory,
        tmp_path / "out",
        data=text,
        eval_data=other,
        eval_every=2,
        eval_sequences=3,
        threads=1,
        **settings,
    )
    assert outcome.result.exit_reason == "done"

    setup = TrainingSetup(
        config=pack.config,
        packing=pack.formats,
        scheme=LORA,
        schedule="mebp",
        n_tokens=64,
        optimizer=momentum,
        accumulate=2,
        evaluate=True,
    )
    plan = plan_run(setup, pack.model_hash)
    session = Session(pack, LORA, plan.train, plan.evaluate, disk, seed=5)
    files = {}
    for name, source in {"train": text, "eval": other}.items():
        prepare_tokens(source, BY_BYTES, tmp_path / name, vocab_size=1024, seq_len=64)
        files[name] = TokenFile(tmp_path / name, 1024)
    batches = Batches(files["train"], 64, seed=5)
    scores, evaluations = [], []
    for step in range(3):
        scores.append(session.train_step(step, batches, 2))
        if step > 0:
            evaluations.append((step + 1, session.evaluate(files["eval"], 64, 3)))
    assert [(step.loss, step.accuracy) for step in outcome.result.steps] == [(s.loss, s.accuracy) for s in scores]
    assert [(item.step, item.loss, item.accuracy) for item in outcome.result.evals] == [
        (step, score.loss, score.accuracy) for step, score in evaluations
    ]
    assert scores[-1].loss < scores[0].loss
    _, adapter = read_adapter(outcome.directory, pack.config)
    for block, name, tensor in session.adapters():
        assert adapter[block, name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize(
    ("enforcement", "changes"),
    [
        ("rlimit+watchdog", {"optimizer": OptimizerConfig("sgd", lr=1e-1), "schedule": "backprop"}),
        ("watchdog", {"accumulate": 3}),
    ],
)
def test_a_run_without_a_cgroup_fits_too(pack: Pack, tmp_path: Path, enforcement: str, changes: dict) -> None:
    notes: list[str] = []
    progress = RunProgress(note=notes.append)
    outcome = run_toy(pack.directory, tmp_path / "out", progress, enforcement=enforcement, seq_len=512, **changes)
    result = outcome.result
    assert (result.exit_reason, result.enforcement) == ("done", enforcement)
    assert notes == [f"no cgroup here (not asked for): {enforcement}"]
    assert result.peak_footprint_bytes == pytest.approx(result.planned_footprint_bytes, rel=0.05)
    assert result.kernel_peak_bytes is None
    assert left_behind(outcome.directory) == []
    assert {event.footprint_bytes for event in read_events(outcome.directory / "events.jsonl")} == {None}


def pages_in_cache(path: Path) -> int:
    """Return how many pages of ``path`` are in the page cache, by mincore(2)."""
    n_bytes = path.stat().st_size
    n_pages = -(-n_bytes // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), n_bytes, flags=mmap.MAP_PRIVATE) as mapped:
        present = (ctypes.c_ubyte * n_pages)()
        address = ctypes.addressof(start := ctypes.c_char.from_buffer(mapped))
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), present) == 0
        del start
    return sum(byte & 1 for byte in present)


def test_a_cold_page_cache_is_cold_and_changes_no_bit(pack: Pack, tmp_path: Path) -> None:
    paths = [part.path for part in pack.parts.values()]
    warm = run_toy(pack.directory, tmp_path / "warm")
    assert all(pages_in_cache(path) for path in paths)
    cold = run_toy(pack.directory, tmp_path / "cold", cold=True)
    assert [pages_in_cache(path) for path in paths] == [0] * len(paths)
    assert (warm.result.page_cache, cold.result.page_cache) == ("warm", "cold")
    assert [step.loss for step in cold.result.steps] == [step.loss for step in warm.result.steps]


def test_a_relative_cache_serves_the_worker_which_runs_elsewhere(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, tmp_path: Path
) -> None:
    (tmp_path / "cache").symlink_to(shared_cache())
    (tmp_path / "model").symlink_to(pack.directory)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMSIM_CACHE", "cache")
    outcome = run_toy(Path("model"), Path("out"), seq_len=16, steps=1)
    assert outcome.result.exit_reason == "done"
    assert files_in(tmp_path / "out") == RUN_FILES | ADAPTER_FILES


def test_without_out_every_run_gets_a_directory_of_its_own(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20250102-030405")  # both in the same second
    for expected in ("20250102-030405-run-model-mebp", "20250102-030405-run-model-mebp-2"):
        outcome = run_toy(pack.directory, None, seq_len=16, steps=1)
        assert outcome.directory == tmp_path / "runs" / expected
    with pytest.raises(InputError, match="exists; choose a directory that does not"):
        run_toy(pack.directory, outcome.directory)


def test_two_runs_at_once_have_a_cap_each(pack: Pack, tmp_path: Path) -> None:
    command = memsim_command("run", "--budget", "400MB", "--model", pack.directory, "--seq-len", 64, "--steps", 10**6)
    with subprocess.Popen([*command, "--out", tmp_path / "other"], stderr=subprocess.PIPE, text=True) as other:
        try:
            assert other.stderr is not None
            assert any(line.startswith("step 1/") for line in other.stderr)
            outcome = run_toy(pack.directory, tmp_path / "out", seq_len=64)
            assert other.poll() is None
        finally:
            other.kill()
    assert outcome.result.exit_reason == "done"


def test_settings_of_the_run_are_those_of_the_record(pack: Pack, tmp_path: Path) -> None:
    config = config_for(pack.directory, tmp_path / "out", seq_len=32, steps=3, optimizer=OptimizerConfig("sgd"))
    result = run_toy(pack.directory, tmp_path / "out", seq_len=32, steps=3, optimizer=config.optimizer).result
    assert result.command == "run"
    assert result.source == "measured"
    assert (result.schedule, result.seq_len, len(result.steps)) == ("mebp", 32, 3)
    assert (result.lora_rank, result.optimizer, result.threads) == (LORA.rank, "sgd", 1)
    per_block = sum(LORA.rank * (rows + columns) for rows, columns in pack.config.projections().values())
    assert result.trainable_parameters == 4 * per_block
    # Spilled: one block input of 32 x 256 floats per block; SGD has no state to write besides.
    assert {step.bytes_spilled for step in result.steps} == {4 * 32 * 256 * 4}
    assert {step.bytes_written for step in result.steps} == {4 * 32 * 256 * 4}
