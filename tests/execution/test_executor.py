"""Readers agree: whatever holds the values, a step gives the same bits, and the planner knows every byte of it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numba
import numpy as np
import pytest

import memsim.execution.storage.arrays
import memsim.planner.plan
from capped_runs import one_thread
from memsim.data.windows import Batches
from memsim.errors import WorkerError
from memsim.execution import executor, kernels
from memsim.execution.session import Session
from memsim.execution.storage import mapped_weights as paging
from memsim.execution.storage import scratch
from memsim.execution.storage.arrays import PlannedArena, SeparateArrays, allocate_arena
from memsim.ir.program import Node, Program
from memsim.models.lora import LoraConfig
from memsim.planner.liveness import LiveRange, arena_ranges
from memsim.planner.plan import plan_memory
from memsim.planner.traffic import step_traffic
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack import Pack
from toy import SEQ_LEN, gradient_names, plan_toy, randomize_adapters, token_file

LORA = LoraConfig(rank=3, alpha=6)

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name

# How the arena's values are held: (program, its plan) -> storage.
STORAGES: dict[str, Callable] = {
    "arena": lambda placed: PlannedArena(placed, allocate_arena(placed.arena_bytes), poison=True),
    "separate": lambda placed: SeparateArrays(placed.program),
    "keep-all": lambda placed: SeparateArrays(placed.program, keep_all=True),
}
CASES = {
    "odd": {},
    "one-token": {"seq_len": 1},
    "even": {"seq_len": 32},
    "accumulate": {"accumulate": 3},
    "sgd": {"optimizer": OptimizerConfig("sgd", lr=1e-1)},
    "momentum-accumulate": {"optimizer": OptimizerConfig("momentum", lr=1e-2), "accumulate": 2},
}


@dataclass(frozen=True)
class Trained:
    """What some steps left behind, bit by bit."""

    losses: list[float]
    adapters: dict[tuple[int, str], bytes]
    gradients: dict[str, bytes]


def make_session(pack: Pack, disk: Path, schedule: str, storage: str = "arena", **changes: object) -> tuple:
    plan = plan_toy(pack, schedule, lora=LORA, **changes)
    session = Session(pack, LORA, plan.train, None, disk, seed=0, arena=STORAGES[storage](plan.train))
    randomize_adapters(session)
    return session, plan


def train(pack: Pack, disk: Path, schedule: str, storage: str, steps: int = 5, **changes: object) -> Trained:
    session, plan = make_session(pack, disk, schedule, storage, **changes)
    tokens = token_file(disk / "executor-tokens.bin", pack.config.vocab_size)
    batches = Batches(tokens, int(changes.get("seq_len", SEQ_LEN)), seed=1)
    accumulate = int(changes.get("accumulate", 1))
    losses = [session.train_step(step, batches, accumulate).loss for step in range(steps)]
    # Only where every value is kept is a gradient still there after the step.
    names = gradient_names(plan.train) if storage == "keep-all" else {}
    return Trained(
        losses,
        {(block, name): tensor.tobytes() for block, name, tensor in session.adapters()},
        {source: session.array(name).tobytes() for source, name in names.items()},
    )


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("schedule", ["mebp", "backprop", "tiled", "mesp", "lcsb", "mezo"])
def test_arena_separate_arrays_and_keep_all_give_the_same_bits(
    disk: Path, toy_pack: Pack, schedule: str, changes: dict
) -> None:
    kept = train(toy_pack, disk, schedule, "keep-all", **changes)
    assert np.isfinite(kept.losses).all()
    for storage in ("arena", "separate"):
        other = train(toy_pack, disk, schedule, storage, **changes)
        assert other.losses == kept.losses
        assert other.adapters == kept.adapters


@pytest.mark.parametrize("schedule", ["zo-jacobi", "zo-gauss-seidel", "hybrid", "fzoo", "zo-adam", "zo-sgd-cons"])
def test_so_do_steps_that_cannot_accumulate(disk: Path, toy_pack: Pack, schedule: str) -> None:
    kept, *others = (train(toy_pack, disk, schedule, storage, steps=3) for storage in STORAGES)
    assert all(other.losses == kept.losses and other.adapters == kept.adapters for other in others)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_mebp_and_backprop_give_the_same_bits(disk: Path, toy_pack: Pack, changes: dict) -> None:
    mebp, backprop = (train(toy_pack, disk, schedule, "keep-all", **changes) for schedule in ("mebp", "backprop"))
    assert mebp.losses == backprop.losses
    assert len(mebp.gradients) == 2 * 7 * toy_pack.config.num_hidden_layers
    assert mebp.gradients == backprop.gradients
    assert mebp.adapters == backprop.adapters


def test_the_training_moved_every_adapter(disk: Path, toy_pack: Pack) -> None:
    session, _ = make_session(toy_pack, disk, "mebp")
    start = {(block, name): tensor.tobytes() for block, name, tensor in session.adapters()}
    trained = train(toy_pack, disk, "mebp", "arena")
    assert all(trained.adapters[key] != start[key] for key in start)
    assert len(set(trained.losses)) == len(trained.losses)


@pytest.mark.parametrize("schedule", ["mebp", "backprop"])  # the one-pass head sums the threads' parts
def test_one_thread_and_two_give_the_same_bits(disk: Path, toy_pack: Pack, schedule: str) -> None:
    default = numba.get_num_threads()
    try:
        results = []
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            results.append(train(toy_pack, disk, schedule, "arena", seq_len=70))
    finally:
        numba.set_num_threads(default)
    assert results[0] == results[1]


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("schedule", ["mebp", "backprop", "tiled", "mezo"])
def test_planned_live_bytes_are_those_allocated_at_every_node(
    disk: Path, toy_pack: Pack, schedule: str, changes: dict
) -> None:
    plan = plan_toy(toy_pack, schedule, lora=LORA, **changes)
    program, memory = plan.train.program, plan_memory(plan.train.program)
    arena = SeparateArrays(program)
    session = Session(toy_pack, LORA, plan.train, None, disk, seed=0, arena=arena)
    tokens = token_file(disk / "executor-tokens.bin", toy_pack.config.vocab_size)
    measured: dict[int, set[int]] = {}

    def observe(index: int, start: float, seconds: float) -> None:
        measured.setdefault(index, set()).add(arena.live_bytes)

    batches = Batches(tokens, int(changes.get("seq_len", SEQ_LEN)), seed=1)
    for step in range(2):
        session.train_step(step, batches, int(changes.get("accumulate", 1)), observe)
    held = memory.pinned_bytes + memory.staging_bytes
    planned = {index: {int(live) - held} for index, live in enumerate(memory.live_bytes)}
    assert measured == planned
    assert arena.live_bytes == 0
    assert max(map(max, measured.values())) <= plan.train.arena_bytes


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("schedule", ["mebp", "backprop", "tiled", "mezo"])
def test_planned_traffic_is_what_moves(
    monkeypatch: pytest.MonkeyPatch, disk: Path, toy_pack: Pack, schedule: str, accumulate: int
) -> None:
    session, plan = make_session(toy_pack, disk, schedule, accumulate=accumulate)
    batches = Batches(token_file(disk / "executor-tokens.bin", toy_pack.config.vocab_size), SEQ_LEN, seed=1)
    executed: list[int] = []
    with counted(monkeypatch, toy_pack, plan.train.program) as moved:
        session.train_step(0, batches, accumulate, lambda index, start, seconds: executed.append(index))
    program = plan.train.program
    assert executed == list(program.order())
    planned = step_traffic(program)
    assert planned == step_traffic(program, executed)
    assert moved["unpacked"] == planned.unpacked_bytes
    assert moved["written"] == planned.written_bytes
    assert moved["spilled"] == planned.spilled_bytes
    assert (planned.spilled_bytes > 0) == (schedule in ("mebp", "tiled"))
    # A page-in of the embedding asks for no more than the rows of the batch, which the kernel reads from the map.
    row_bytes = part_bytes(toy_pack, "embed") // toy_pack.config.vocab_size
    assert moved["paged in"] == planned.paged_in_bytes - accumulate * SEQ_LEN * row_bytes


PACKED_OPS = ("unpack_q4", "linear_q4", "linear_q4_backward_input", "linear_cross_entropy_q4", "embedding_q4")


def part_bytes(pack: Pack, part: str) -> int:
    return sum(entry.n_bytes for entry in pack.part(part).tensors.values())


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, pack: Pack, program: Program) -> Iterator[Counter[str]]:
    """Count the bytes that the executor really asks for, unpacks and writes, by the calls and arrays that do it."""
    moved: Counter[str] = Counter()
    sizes = scratch.scratch_sizes(program)
    page_in, write_back, write = paging.MappedWeights.page_in, scratch.ScratchFile.write_back, scratch.ScratchFile.write
    spill = executor._STORAGE_OPS["spill"]

    def unpacking(op: str, kernel: kernels.Kernel) -> kernels.Kernel:
        def call(outputs, inputs, attrs):  # type: ignore[no-untyped-def]
            weights = [array for array in inputs if array.dtype in (np.uint32, np.float16) and array.ndim > 1]
            n_bytes = sum(array.nbytes for array in weights)
            if op == "embedding_q4":
                n_bytes = inputs[0].size * n_bytes // (weights[0].shape[0] * weights[0].shape[2])
            moved["unpacked"] += n_bytes
            kernel(outputs, inputs, attrs)

        return call

    def counting_page_in(self: paging.MappedWeights, part: str, everything: bool) -> None:
        page_in(self, part, everything)
        moved["paged in"] += part_bytes(pack, part) if everything else 0

    def counting_write_back(self: scratch.ScratchFile, source: str) -> None:
        write_back(self, source)
        moved["written"] += sizes[source]

    def counting_write(self: scratch.ScratchFile, source: str, tensors: Sequence[np.ndarray]) -> None:
        write(self, source, tensors)
        moved["written"] += sum(tensor.nbytes for tensor in tensors)

    def counting_spill(self: executor.Executor, node: Node) -> None:
        spill(self, node)
        moved["spilled"] += self.array(node.inputs[0]).nbytes

    with monkeypatch.context() as patch:
        for op in PACKED_OPS:
            patch.setitem(kernels.KERNELS, op, unpacking(op, kernels.KERNELS[op]))
        patch.setattr(paging.MappedWeights, "page_in", counting_page_in)
        patch.setattr(scratch.ScratchFile, "write_back", counting_write_back)
        patch.setattr(scratch.ScratchFile, "write", counting_write)
        patch.setitem(executor._STORAGE_OPS, "spill", counting_spill)
        yield moved


def one_node_early(victim: str) -> Callable[[Program], list[LiveRange]]:
    """Return a planner's ``arena_ranges`` that lets go of storage ``victim`` one node too early."""

    def ranges(program: Program) -> list[LiveRange]:
        return [replace(item, last=item.last - (item.name == victim)) for item in arena_ranges(program)]

    return ranges


@pytest.mark.parametrize("schedule", ["mebp", "backprop", "tiled", "mezo"])
def test_storage_freed_one_node_early_never_goes_unnoticed(
    monkeypatch: pytest.MonkeyPatch, disk: Path, toy_pack: Pack, schedule: str
) -> None:
    good = train(toy_pack, disk, schedule, "arena", steps=2)
    program = plan_toy(toy_pack, schedule, lora=LORA).train.program
    # An evict that ends a life only lets go of an unpacked matrix; every other node computes with what it reads.
    victims = [item for item in arena_ranges(program) if program.nodes[item.last].op != "evict"]
    victims = [item.name for item in victims if item.last > item.first]
    assert len(victims) > 50
    unnoticed = []
    for victim in victims:
        with monkeypatch.context() as patch:
            patch.setattr(memsim.planner.plan, "arena_ranges", one_node_early(victim))
            patch.setattr(memsim.execution.storage.arrays, "arena_ranges", one_node_early(victim))
            try:
                same = train(toy_pack, disk, schedule, "arena", steps=2) == good
            except WorkerError:  # the loss is not finite
                same = False
        if same:
            unnoticed.append(victim)
    assert unnoticed == []
