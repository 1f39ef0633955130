"""Staging: what scratch values pass through, and what of them is read ahead."""

from dataclasses import replace

import pytest

from memsim.models.lora import LoraConfig, n_trainable
from memsim.models.presets import PRESETS
from memsim.planner.plan import LIBRARY_FLOOR_BYTES
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.planner.staging import N_SLOTS, read_ahead_bytes, staging
from memsim.schedules.optimizers import OptimizerConfig

CONFIG = replace(PRESETS["qwen2.5-0.5b"], num_hidden_layers=4)
LORA = LoraConfig()
BLOCK_ADAPTERS = 4 * n_trainable(CONFIG, LORA) // CONFIG.num_hidden_layers


def plan(schedule: str, optimizer: str = "adamw", n_tokens: int = 256) -> RunPlan:
    return plan_run(TrainingSetup(CONFIG, 32, LORA, schedule, n_tokens, OptimizerConfig(optimizer)), "hash")


def block_input(n_tokens: int) -> int:
    return 4 * n_tokens * CONFIG.hidden_size


@pytest.mark.parametrize(
    ("schedule", "optimizer", "window"),
    [("mebp", "adamw", 2), ("mebp", "momentum", 1), ("mebp", "sgd", 0), ("backprop", "adamw", 2), ("tiled", "sgd", 1)],
)
def test_the_window_holds_one_blocks_state_or_paged_adapters(schedule: str, optimizer: str, window: int) -> None:
    found = staging([plan(schedule, optimizer).train.program]).window_bytes
    assert window * BLOCK_ADAPTERS <= found < window * BLOCK_ADAPTERS + 4096


@pytest.mark.parametrize("n_tokens", [1, 256, 1024])
def test_the_slots_hold_a_block_input_up_to_a_mebibyte(n_tokens: int) -> None:
    found = N_SLOTS * staging([plan("mebp", n_tokens=n_tokens).train.program]).slot_bytes
    wanted = min(block_input(n_tokens), 1 << 20)
    assert wanted <= found < wanted + N_SLOTS * 4096


def test_without_spills_there_are_no_slots() -> None:
    assert staging([plan("backprop").train.program]).slot_bytes == 0


def test_two_programs_share_what_the_larger_needs() -> None:
    small, large = (plan("tiled", optimizer).train.program for optimizer in ("sgd", "adamw"))
    assert staging([small, large]) == staging([large])


def test_the_file_floor_counts_what_is_read_ahead() -> None:
    tiled = plan("tiled")
    # Adapters and input of one block, and the adapters of the next, or the other way round.
    expected = max(2 * BLOCK_ADAPTERS + block_input(256), BLOCK_ADAPTERS + 2 * block_input(256))
    assert read_ahead_bytes(tiled.train.program) == expected
    memory = tiled.memory
    assert memory.file_floor_bytes == LIBRARY_FLOOR_BYTES + 2 * memory.together_bytes + expected
    assert read_ahead_bytes(plan("backprop").train.program) == 0
