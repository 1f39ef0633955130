"""Derived backwards: what they read, what dead-code elimination leaves out."""

import pytest

from memsim.ir.autodiff import differentiate
from memsim.ir.builder import Builder
from memsim.ir.op import OpError
from memsim.ir.program import TensorType
from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig, adapter_shapes
from toy import toy_config


def test_a_frozen_layer_keeps_no_activation() -> None:
    # Only v_proj is trained: nothing of the MLP's inputs is read but what SwiGLU and the norms need.
    config, lora = toy_config(), LoraConfig(rank=2, alpha=4, target_modules=("v_proj",))
    graph = ModelGraph(config, lora, 5, 32)
    assert {"mlp_norm", "swiglu"}.isdisjoint(graph.residuals)
    assert {"x", "attn_norm", "gate", "up"} <= set(graph.residuals)


def test_the_first_block_computes_no_gradient_for_its_input() -> None:
    graph = ModelGraph(toy_config(), LoraConfig(rank=2, alpha=4), 5, 32)
    first, other = graph.attention(0).backward, graph.attention(1).backward
    assert "x" in other.gradients and "x" not in first.gradients
    # q, k and v of the first block need neither W nor A for anything below them.
    products = [node for node in first.nodes if node.op == "linear_q4_backward_input"]
    assert [node.inputs[1] for node in products] == ["self_attn.o_proj.q"]


def test_every_adapter_gets_exactly_one_gradient() -> None:
    config, lora = toy_config(), LoraConfig(rank=2, alpha=4)
    graph = ModelGraph(config, lora, 5, 32)
    gradients: dict[str, str] = {}
    for segment in (graph.mlp(), graph.attention(1)):
        defined = [name for node in segment.backward.nodes for name in node.outputs]
        assert all(defined.count(name) == 1 for name in segment.backward.gradients.values())
        gradients |= segment.backward.gradients
    assert set(gradients) == {"x", "x_mid", *adapter_shapes(config, lora)}


def test_a_value_used_twice_adds_its_gradients() -> None:
    builder = Builder()
    builder.input("x", TensorType((2, 4)))
    builder.emit("swiglu", ["x", "x"], ["s"])
    builder.emit("add", ["s", "x"], ["y"])
    backward = differentiate(builder.build(["y"]), "y", ("x",))
    assert [node.op for node in backward.nodes] == ["swiglu_backward", "add", "add"]


def test_an_op_without_a_rule_is_refused() -> None:
    builder = Builder()
    builder.input("x", TensorType((2, 4)))
    builder.declare("y", TensorType((2, 4)))
    builder.emit_declared("restore", ["x"], ["y"])
    with pytest.raises(OpError, match="restore has no backward rule"):
        differentiate(builder.build(["y"]), "y", ("x",))


def test_the_segments_of_a_block_meet_at_x_mid() -> None:
    graph = ModelGraph(toy_config(), LoraConfig(), 5, 32)
    assert (graph.attention(1).x, graph.attention(1).y) == ("x", "x_mid")
    assert (graph.mlp().x, graph.mlp().y) == ("x_mid", "y")
    assert graph.mlp(3).forward.values["y"].type.shape == (3, 48)


def test_the_blocks_of_a_kind_share_a_program() -> None:
    kinds = ("sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention")
    config = toy_config(num_hidden_layers=5, layer_types=kinds)
    graph = ModelGraph(config, LoraConfig(rank=2, alpha=4), 5, 32)
    local, other, full = graph.attention(1), graph.attention(3), graph.attention(2)
    assert local is other and full is graph.attention(4) and local is not full
    assert graph.attention(0).forward.nodes == local.forward.nodes and graph.attention(0).backward != local.backward
    assert graph.mlp(3) is graph.mlp(3)
