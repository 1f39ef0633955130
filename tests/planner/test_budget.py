"""Refusals name what, how much, where, and what to do."""

import pytest

from memsim.errors import LimitError
from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig, n_trainable
from memsim.models.presets import PRESETS
from memsim.planner.plan import LIBRARY_FLOOR_BYTES, check_budget
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.planner.traffic import step_traffic
from memsim.schedules.optimizers import OptimizerConfig

BASELINE = 70_000_000


def _plan(model: str, schedule: str, seq_len: int = 256):  # type: ignore[no-untyped-def]
    config = PRESETS[model]
    setup = TrainingSetup(config, 32, LoraConfig(), schedule, seq_len, OptimizerConfig())
    return plan_run(setup, "hash")


def test_mebp_at_half_a_billion_needs_its_logits_and_adapters() -> None:
    config = PRESETS["qwen2.5-0.5b"]
    plan = _plan("qwen2.5-0.5b", "mebp").memory
    logits = 256 * config.vocab_size * 4
    adapters = 4 * n_trainable(config, LoraConfig())
    assert logits + adapters < plan.peak_bytes < 1.05 * (logits + adapters)
    assert plan.held[0] == ("head/f.logits", logits)


def test_a_plan_over_the_budget_is_refused_with_its_peak() -> None:
    plan = _plan("qwen2.5-0.5b", "mebp")
    memory = plan.memory
    needed = BASELINE + memory.peak_bytes + memory.file_floor_bytes
    check_budget(plan.program, memory, "mebp", BASELINE, needed)
    with pytest.raises(LimitError) as caught:
        check_budget(plan.program, memory, "mebp", BASELINE, 150_000_000, decimal=True)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    for part in (
        f"mebp needs {needed / 1e6:.1f} MB",
        f"{(needed - 150e6) / 1e6:.1f} MB over the budget of 150.0 MB",
        f"node {memory.peak_node} (linear_q4, head forward)",
        "head/f.logits 155.6 MB",
        "--seq-len",
    ):
        assert part in message
    with pytest.raises(LimitError):
        check_budget(plan.program, memory, "mebp", BASELINE, needed - 1)
    least = needed - 2_000_000
    check_budget(plan.program, memory, "mebp", BASELINE, least, tolerance_bytes=2_000_000)
    with pytest.raises(LimitError, match=rf"\({least / 1e6:.1f} MB is the least that is taken\)"):
        check_budget(plan.program, memory, "mebp", BASELINE, least - 1, decimal=True, tolerance_bytes=2_000_000)


def test_the_file_floor_is_two_packed_blocks_the_libraries_and_what_is_read_ahead() -> None:
    plan = _plan("qwen2.5-0.5b", "mebp")
    block = next(node for node in plan.program.nodes if node.op == "page_in" and node.part == "block_000")
    packed = 2 * int(block.attrs["reads_bytes"])
    assert plan.memory.file_floor_bytes == LIBRARY_FLOOR_BYTES + packed + plan.memory.read_ahead_bytes


@pytest.mark.parametrize("model", ["qwen2.5-0.5b", "gemma3-1b"])
def test_mebp_holds_less_than_backprop_and_reads_as_much(model: str) -> None:
    mebp, backprop = _plan(model, "mebp", 64), _plan(model, "backprop", 64)
    assert mebp.memory.peak_bytes < backprop.memory.peak_bytes
    moved, kept = step_traffic(mebp.program), step_traffic(backprop.program)
    assert moved.paged_in_bytes == kept.paged_in_bytes
    config = PRESETS[model]
    assert moved.spilled_bytes == config.num_hidden_layers * 64 * config.hidden_size * 4
    assert kept.spilled_bytes == 0


def test_recompute_skips_down_proj() -> None:
    graph = ModelGraph(PRESETS["qwen2.5-0.5b"], LoraConfig(), 16, 32)
    assert "swiglu" in graph.residuals
    program = _plan("qwen2.5-0.5b", "mebp", 16).program
    recomputed = [node for node in program.nodes if node.phase == "recompute" and node.part == "block_003"]
    products = [node.inputs[1].rsplit(".", 2)[-2] for node in recomputed if node.op == "linear"]
    assert products == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
