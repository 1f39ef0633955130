"""Memory without an arena: what the heap reached stays, what is mapped goes."""

import pytest

from memsim.models.lora import LoraConfig
from memsim.planner.plan import plan_memory
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.planner.separate import in_separate_arrays, mapped_from_bytes
from memsim.schedules.optimizers import OptimizerConfig
from memsim.units import MIB
from toy_families import toy_config


def toy_plan(schedule: str, n_tokens: int = 13, **config: object) -> RunPlan:
    setup = TrainingSetup(toy_config(**config), 32, LoraConfig(rank=3), schedule, n_tokens, OptimizerConfig())
    return plan_run(setup, "")


@pytest.mark.parametrize("schedule", ["mebp", "backprop", "tiled"])
def test_a_small_run_has_all_in_the_heap_and_its_holes(schedule: str) -> None:
    plan = toy_plan(schedule)
    memory = plan_memory(plan.program)
    always = memory.pinned_bytes + memory.staging_bytes
    live = int(memory.live_bytes.max()) - always
    assert mapped_from_bytes(memory) == 4 * MIB
    separate = in_separate_arrays(plan.program, memory)
    assert separate.arena_bytes == pytest.approx(1.25 * live, abs=64)
    assert separate.peak_bytes == always + separate.arena_bytes
    assert not separate.offsets


def test_a_large_run_maps_its_large_values() -> None:
    plan = toy_plan("backprop", n_tokens=2048, max_position_embeddings=4096, vocab_size=20_000)
    memory = plan_memory(plan.program)
    assert mapped_from_bytes(memory) == 256 << 10
    separate = in_separate_arrays(plan.program, memory)
    live = int(memory.live_bytes.max())
    assert live <= separate.peak_bytes < 1.25 * live
