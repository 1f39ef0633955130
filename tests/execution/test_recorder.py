"""What memray saw of a recorded session is what was planned: every node, every value, to the byte."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.errors import InputError
from memsim.execution.recorder import Recorder
from memsim.execution.session import Session
from memsim.ir.program import Program, Space
from memsim.models.lora import LoraConfig
from memsim.planner.plan import plan_memory
from memsim.planner.separate import in_separate_arrays
from memsim.simulator.recordings.frames import node_frame, node_of_frame
from memsim.simulator.recordings.recording import RecordedNode, recorded_nodes
from memsim.weights.pack import Pack
from toy import SEQ_LEN, Batches, plan_toy, randomize_adapters, token_file

LORA = LoraConfig(rank=3, alpha=6)  # adapters whose bytes are no multiple of a cache line

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name


def record(pack: Pack, disk: Path, schedule: str, accumulate: int = 1, recorded: int = 2) -> tuple:
    """Train three steps, ``recorded`` of them under the tracker; return the program, the capture and the losses."""
    train = plan_toy(pack, schedule, lora=LORA, accumulate=accumulate).train
    capture = disk / f"{schedule}-{accumulate}.bin"
    recorder = Recorder(train.program, capture, mapped_from_bytes=8192)
    recorder.start()
    try:
        session = Session(pack, LORA, train, None, disk, seed=0, recorder=recorder)
        randomize_adapters(session)
        batches = Batches(token_file(disk / "recorder-tokens.bin", pack.config.vocab_size), SEQ_LEN, seed=1)
        losses = [session.train_step(step, batches, accumulate).loss for step in range(recorded)]
    finally:
        recorder.stop()
    losses += [session.train_step(step, batches, accumulate).loss for step in range(recorded, 3)]
    return train.program, capture, losses


def planned_allocations(program: Program) -> dict[int, list[str]]:
    """Return the storage that each node is the first to touch."""
    seen: set[str] = set()
    born: dict[int, list[str]] = {}
    for index, node in enumerate(program.nodes):
        roots = [program.root(name) for name in node.outputs if program.values[name].space is Space.ARENA]
        born[index] = [root for root in dict.fromkeys(roots) if root not in seen]
        seen |= set(roots)
    return born


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("schedule", ["mebp", "backprop", "tiled"])
def test_the_capture_alone_gives_the_planned_bytes_at_every_node(
    disk: Path, toy_pack: Pack, schedule: str, accumulate: int
) -> None:
    program, capture, _ = record(toy_pack, disk, schedule, accumulate)
    before, *nodes = recorded_nodes(capture, program)
    plan = plan_memory(program)
    assert [node.index for node in nodes] == list(program.order()) * 2
    assert [node.live_bytes for node in nodes] == [plan.live_bytes[node.index] for node in nodes]
    assert before.live_bytes == plan.pinned_bytes + plan.staging_bytes
    born = planned_allocations(program)
    for node in nodes:
        assert [name for name, _ in node.allocated] == born[node.index]
    assert max(node.live_bytes for node in nodes) <= in_separate_arrays(program, plan).peak_bytes
    held = names_at_peak(before, nodes)
    pinned = {value.source for value in program.values.values() if value.space is Space.PINNED}
    assert held - pinned == {name for name, _ in plan.held if name != "pinned"}
    assert held & pinned == pinned


def names_at_peak(before: RecordedNode, nodes: list[RecordedNode]) -> set[str]:
    peak = max(range(len(nodes)), key=lambda position: nodes[position].live_bytes)
    held = {name for name, _ in before.allocated}
    for node in nodes[:peak]:
        held |= {name for name, _ in node.allocated}
        held -= set(node.freed)
    return held | {name for name, _ in nodes[peak].allocated}


def test_large_values_leave_the_heap_alone(disk: Path, toy_pack: Pack) -> None:
    recorder = Recorder(plan_toy(toy_pack, "mebp").train.program, disk / "large.bin", mapped_from_bytes=8192)
    for n_bytes, kind in ((64, mmap.mmap), (8128, np.ndarray), (8192, mmap.mmap), (1 << 20, mmap.mmap)):
        block = recorder.allocate(f"value of {n_bytes}", n_bytes)
        assert isinstance(block, kind)
        assert len(block) == n_bytes


def test_recording_changes_no_bit(disk: Path, toy_pack: Pack) -> None:
    _, _, losses = record(toy_pack, disk, "mebp")
    train = plan_toy(toy_pack, "mebp", lora=LORA).train
    session = Session(toy_pack, LORA, train, None, disk, seed=0)
    randomize_adapters(session)
    batches = Batches(token_file(disk / "recorder-tokens.bin", toy_pack.config.vocab_size), SEQ_LEN, seed=1)
    assert losses == [session.train_step(step, batches, 1).loss for step in range(3)]
    assert np.isfinite(losses).all()


def test_a_capture_of_another_program_is_refused(disk: Path, toy_pack: Pack) -> None:
    program, capture, _ = record(toy_pack, disk, "mebp", recorded=1)
    other = plan_toy(toy_pack, "backprop", lora=LORA).train.program
    assert program != other
    with pytest.raises(InputError, match="is not a recording of program.jsonl"):
        list(recorded_nodes(capture, other))


def test_a_frame_names_its_node(toy_pack: Pack) -> None:
    program = plan_toy(toy_pack, "mebp").train.program
    for index, node in enumerate(program.nodes):
        assert node_of_frame(node_frame(index, node)) == index
    assert node_frame(7, program.nodes[2]) == f"node_0007 {program.nodes[2]}"
    for name in ("node_", "node_x", "node_-1 add", "mode_0001 add", "", "node_" + "9" * 40, "node_² add"):
        with pytest.raises(ValueError, match="is not the frame of a node"):
            node_of_frame(name)
