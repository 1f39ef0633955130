"""``tiled`` and its choices: the same bits as MeBP, whatever is tiled, paged or updated early."""

from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest

from memsim.data.windows import Batches
from memsim.errors import WorkerError
from memsim.execution.session import Session
from memsim.execution.storage.arrays import PlannedArena, allocate_arena
from memsim.ir.ops.loss import head_work_floats
from memsim.ir.program import Program
from memsim.models.lora import LoraConfig, n_trainable
from memsim.models.presets import PRESETS
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.schedules import choices
from memsim.schedules.emitter import HEAD_TILE_BYTES
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack import Pack
from toy import SEQ_LEN, plan_toy, randomize_adapters, token_file

LORA = LoraConfig(rank=3, alpha=6)


def trained(pack: Pack, disk: Path, tmp_path: Path, schedule: str, accumulate: int) -> list[np.ndarray]:
    """Return the adapters after three steps, in an arena that is poisoned wherever a value has died."""
    plan = plan_toy(pack, schedule, lora=LORA, accumulate=accumulate)
    arena = PlannedArena(plan.train, allocate_arena(plan.train.arena_bytes), poison=True)
    session = Session(pack, LORA, plan.train, None, disk, seed=0, arena=arena)
    randomize_adapters(session)
    batches = Batches(token_file(tmp_path / "t.bin", pack.config.vocab_size), SEQ_LEN, seed=0)
    for step in range(3):
        session.train_step(step, batches, accumulate)
    return [np.array(tensor) for _, _, tensor in session.adapters()]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_tile": 5},  # the last tile has three tokens, as many as the rank
        {"mlp_tile": 12, "update": "end"},
        {"mlp_tile": None, "adapters": "pinned"},
        {"mlp_tile": 1, "prefetch": False, "adapters": "pinned", "update": "end"},
        {"mlp_tile": 4, "unpack": "block"},
        {"mlp_tile": 6, "state": "pinned"},
        {"mlp_tile": None, "state": "pinned", "adapters": "pinned"},
        {"mlp_tile": 7, "state": "pinned", "update": "end"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_what_is_tiled_or_paged_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, toy_pack: Pack, disk: Path, tmp_path: Path, changes: dict, accumulate: int
) -> None:
    def variant(n_blocks: int, residuals: tuple[str, ...]) -> choices.Choices:
        # The one-pass head sums in another order, so it is left out here; torch autograd holds it.
        return replace(choices.tiled(n_blocks, residuals), head="logits", **changes)

    monkeypatch.setitem(choices.SCHEDULES, "variant", variant)
    expected = trained(toy_pack, disk, tmp_path, "mebp", accumulate)
    found = trained(toy_pack, disk, tmp_path, "variant", accumulate)
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_more_threads_than_planned_are_refused(toy_pack: Pack, disk: Path, tmp_path: Path) -> None:
    setup = TrainingSetup(toy_pack.config, toy_pack.group_size, LORA, "tiled", SEQ_LEN, OptimizerConfig(), threads=1)
    session = Session(toy_pack, LORA, plan_run(setup, toy_pack.model_hash).train, None, disk, seed=0)
    batches = Batches(token_file(tmp_path / "t.bin", toy_pack.config.vocab_size), SEQ_LEN, seed=0)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        session.train_step(0, batches, 1)
        numba.set_num_threads(before)
        if before > 1:
            with pytest.raises(WorkerError, match=f"planned for 1 threads, not {before}"):
                session.train_step(1, batches, 1)
    finally:
        numba.set_num_threads(before)


def test_tiled_holds_neither_logits_nor_adapters_nor_a_whole_mlp() -> None:
    config, lora = PRESETS["qwen2.5-0.5b"], LoraConfig()
    setup = TrainingSetup(config, 32, lora, "tiled", 256, OptimizerConfig(), threads=2)
    memory = plan_run(setup, "hash").memory
    assert memory.peak_bytes < 4 * n_trainable(config, lora) + 4 * 2**20
    assert max(n_bytes for _, n_bytes in memory.held) < 256 * config.intermediate_size * 4


def test_a_longer_sequence_costs_its_rows_only() -> None:
    config, lora = PRESETS["qwen2.5-0.5b"], LoraConfig()
    peaks = [
        plan_run(TrainingSetup(config, 32, lora, "tiled", n, OptimizerConfig(), threads=2), "hash").memory.peak_bytes
        for n in (256, 2048)
    ]
    assert peaks[1] - peaks[0] < 100e6


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("tokens", "columns"), [(1, 8), (13, 48), (255, 896), (256, 2048), (2000, 3584)])
def test_the_planned_workspace_is_enough_for_every_head(tokens: int, columns: int, threads: int) -> None:
    from memsim_kernels import cpu
    from memsim_kernels.head_f32 import head_floats

    planned = head_work_floats(tokens, columns, threads)
    assert planned >= head_floats(tokens, columns, threads)
    if cpu.HAS_AVX512_BF16:
        from memsim_kernels.head_bf16 import head_bf16_floats

        needed = head_bf16_floats(tokens, columns, threads)
        assert needed <= planned <= 2 * max(needed, head_floats(tokens, columns, threads))


def _tied(tie: bool) -> Program:
    config = replace(PRESETS["qwen2.5-0.5b"], num_hidden_layers=2, tie_word_embeddings=tie)
    setup = TrainingSetup(config, 32, LORA, "tiled", 8, OptimizerConfig(), threads=1)
    return plan_run(setup, "hash").train.program


@pytest.mark.parametrize(("tie", "parts"), [(True, ["head", "embed"]), (False, ["head"])])
def test_the_first_tile_of_the_heads_matrix_is_asked_for_before_the_head(tie: bool, parts: list[str]) -> None:
    program = _tied(tie)
    asked = [node for node in program.nodes if node.op == "prefetch" and node.phase == "forward"]
    assert [node.attrs["part"] for node in asked] == ["block_001", *parts]
    block = next(node for node in program.nodes if node.op == "page_in" and node.part == "block_001")
    assert asked[0].attrs["together_bytes"] == block.attrs["reads_bytes"]
    assert max(int(node.attrs["together_bytes"]) for node in asked[1:]) == HEAD_TILE_BYTES
