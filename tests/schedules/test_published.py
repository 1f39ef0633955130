"""The published runtime's step, against sums made from the model's dimensions."""

import pytest

from memsim.ir.program import Program, Space
from memsim.ir.work import Kind
from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig, n_trainable
from memsim.models.presets import PRESETS
from memsim.planner.plan import plan_memory
from memsim.planner.work import node_kind, node_work, step_work
from memsim.schedules.choices import mebp
from memsim.schedules.lowering import lower, lower_evaluation
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.published_lowering import METHODS, lower_published

T = 64
MODELS = ("qwen2.5-0.5b", "gemma3-1b")


def _graph(model: str) -> ModelGraph:
    return ModelGraph(PRESETS[model], LoraConfig(), T, 32)


def _sizes(model: str) -> dict[str, int]:
    config = PRESETS[model]
    weights = sum(rows * columns for rows, columns in config.projections().values())
    vocabulary = config.vocab_size * config.hidden_size
    return {
        "embedding": vocabulary * 9 // 16,  # 4 bits and a 16-bit scale for 32
        "block": 2 * weights,
        "adapters": 2 * n_trainable(config, LoraConfig()),
        "logits": 4 * T * config.vocab_size,
    }


def _at(program: Program, op: str, part: str) -> int:
    """Return the live bytes at the last node of ``part`` with this op."""
    index = max(i for i, node in enumerate(program.nodes) if node.op == op and node.part.startswith(part))
    return int(plan_memory(program).live_bytes[index])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_value_is_defined_once_before_it_is_read(model: str, method: str) -> None:
    program = lower_published(_graph(model), method)
    defined = set(program.inputs)
    for node in program.nodes:
        assert set(node.inputs) <= defined
        assert not set(node.outputs) & defined
        defined |= set(node.outputs)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_at_the_head_it_holds_embedding_adapters_logits_and_a_block_ahead(model: str, method: str) -> None:
    program, sizes = lower_published(_graph(model), method), _sizes(model)
    held = _at(program, "cross_entropy", "head")
    # Beside them only constants and some activations of T x C.
    small = 20 * T * PRESETS[model].hidden_size
    assert sum(sizes.values()) <= held <= sum(sizes.values()) + small


@pytest.mark.parametrize("model", MODELS)
def test_a_block_s_backward_holds_its_weights_twice_and_all_it_computed(model: str) -> None:
    program, sizes = lower_published(_graph(model), "mebp"), _sizes(model)
    part = "block_000"
    held = _at(program, "evict", part)
    start = max(i for i, node in enumerate(program.nodes) if node.op == "page_in" and node.part == part)
    nodes = [node for node in program.nodes[start:] if node.part == part and node.phase != "update"]
    values = {name for node in nodes for name in node.outputs if program.values[name].space is Space.ARENA}
    computed = sum(program.values[name].n_bytes for name in values)  # the unpacked weights among it
    # The gradients of the other blocks' adapters, the embedding, the adapters and the block ahead.
    layers = PRESETS[model].num_hidden_layers
    others = sizes["embedding"] + sizes["block"] + sizes["adapters"] * (2 * layers - 1) // layers
    assert computed > sizes["block"]
    assert computed + others <= held <= 1.02 * (computed + others)


def test_a_forward_frees_what_it_does_not_need() -> None:
    program = lower_published(_graph("qwen2.5-0.5b"), "mezo")
    held = _at(program, "evict", "block_005")
    sizes = _sizes("qwen2.5-0.5b")
    unpacked = sizes["embedding"] + 2 * sizes["block"] + sizes["adapters"]
    assert unpacked <= held < 1.02 * unpacked


@pytest.mark.parametrize("model", MODELS)
def test_the_arithmetic_is_that_of_our_own_lowering(model: str) -> None:
    graph = _graph(model)
    choices = mebp(graph.config.num_hidden_layers, graph.residuals)
    forward = step_work(lower_evaluation(graph, choices))
    assert step_work(lower_published(graph, "mezo")).flops == 2 * forward.flops
    assert step_work(lower_published(graph, "mebp")).flops == step_work(lower(graph, choices, OptimizerConfig())).flops
    assert step_work(lower_published(graph, "mezo")).unpacked_weights == 2 * forward.unpacked_weights


def test_activations_have_two_bytes_and_logits_four() -> None:
    program = lower_published(_graph("qwen2.5-0.5b"), "mebp")
    kinds = {node_kind(node): node for node in program.nodes}
    assert program.values[kinds[Kind.ATTENTION].outputs[0]].type.dtype == "f16"
    softmax = next(node for node in program.nodes if node.op == "cross_entropy_backward")
    logits = T * PRESETS["qwen2.5-0.5b"].vocab_size
    assert node_work(program, softmax).moved_bytes == pytest.approx(2 * 4 * logits, rel=1e-4)
    assert program.values[softmax.outputs[0]].alias_of == softmax.inputs[0]
    adapters = [value for value in program.values.values() if "lora_" in value.name]
    assert {value.type.dtype for value in adapters} == {"f16"}
