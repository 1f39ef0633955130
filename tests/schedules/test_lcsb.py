"""LCSB: all blocks are MeBP, and a block that is not selected passes the gradient on and stays as it is."""

from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.data.windows import Batches
from memsim.execution.session import Session
from memsim.execution.storage.arrays import SeparateArrays
from memsim.models.lora import LoraConfig
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.planner.traffic import step_traffic
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack import Pack
from memsim.weights.synthetic import write_synthetic
from toy import SEQ_LEN, gradient_names, randomize_adapters, token_file, toy_config

LORA = LoraConfig(rank=3, alpha=6)

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return write_synthetic(
        tmp_path_factory.mktemp("lcsb") / "pack", toy_config(num_hidden_layers=4), 32, 0, lambda *_: None
    )


def make(pack: Pack, disk: Path, schedule: str, groups: int | None = None, accumulate: int = 1):  # type: ignore[no-untyped-def]
    optimizer = OptimizerConfig("adamw", lr=1e-2)
    setup = TrainingSetup(
        pack.config, pack.group_size, LORA, schedule, SEQ_LEN, optimizer, accumulate, lcsb_groups=groups
    )
    plan = plan_run(setup, pack.model_hash)
    arena = SeparateArrays(plan.train.program, keep_all=True)
    session = Session(pack, LORA, plan.train, None, disk, 0, arena=arena)
    randomize_adapters(session)
    return session, plan


def adapters(session: Session) -> dict[tuple[int, str], bytes]:
    return {(block, name): tensor.tobytes() for block, name, tensor in session.adapters()}


def gradients(session: Session, plan, block: int) -> dict[str, bytes]:  # type: ignore[no-untyped-def]
    names = gradient_names(plan.train)
    return {s: session.array(name).tobytes() for s, name in names.items() if s.startswith(f"block_{block:03d}/")}


@pytest.fixture
def batches(tmp_path: Path, pack: Pack) -> Batches:
    return Batches(token_file(tmp_path / "t.bin", pack.config.vocab_size), SEQ_LEN, seed=1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lcsb_with_all_blocks_is_mebp_to_the_bit(disk: Path, pack: Pack, batches: Batches, accumulate: int) -> None:
    results = []
    for schedule, groups in (("mebp", None), ("lcsb", 1)):
        session, plan = make(pack, disk, schedule, groups, accumulate)
        losses = [session.train_step(step, batches, accumulate).loss for step in range(3)]
        results.append((losses, adapters(session), [gradients(session, plan, block) for block in range(4)]))
    assert results[0] == results[1]


def test_only_the_blocks_whose_turn_it_is_move(disk: Path, pack: Pack, batches: Batches) -> None:
    session, _ = make(pack, disk, "lcsb", 2)
    for step in range(4):
        before = adapters(session)
        session.train_step(step, batches, 1)
        moved = {block for (block, name), values in adapters(session).items() if before[block, name] != values}
        assert moved == {step % 2, step % 2 + 2}


def test_the_top_selected_block_has_its_true_gradient_and_those_below_a_surrogate(
    disk: Path, pack: Pack, batches: Batches
) -> None:
    exact, exact_plan = make(pack, disk, "mebp")
    surrogate, plan = make(pack, disk, "lcsb", 2)
    exact.train_step(1, batches, 1)
    surrogate.train_step(1, batches, 1)  # blocks 1 and 3; the gradient passes block 2
    assert gradients(surrogate, plan, 3) == gradients(exact, exact_plan, 3)
    one, other = (
        np.concatenate([np.frombuffer(values, np.float32) for values in gradients(*made, 1).values()])
        for made in ((exact, exact_plan), (surrogate, plan))
    )
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert 0.3 < cosine < 0.9999


def test_an_unselected_block_is_neither_read_again_nor_spilled(pack: Pack, disk: Path) -> None:
    _, mebp = make(pack, disk, "mebp")
    _, lcsb = make(pack, disk, "lcsb", 4)
    whole, part = step_traffic(mebp.train.program), step_traffic(lcsb.train.program)
    assert part.spilled_bytes == whole.spilled_bytes / 4
    ops = [lcsb.train.program.nodes[index] for index in lcsb.train.program.order(2)]
    assert {node.part for node in ops if node.phase == "backward"} == {"head", "block_002"}
    assert sum(node.op == "page_in" and node.part.startswith("block_") for node in ops) == 4 + 1
