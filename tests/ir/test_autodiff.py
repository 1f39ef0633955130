"""Derived backwards: what they read, what dead-code elimination leaves out."""

import pytest

from memsim.ir.autodiff import differentiate
from memsim.ir.builder import Builder
from memsim.ir.opset import OpError
from memsim.ir.program import TensorType
from memsim.models.decoder import block_program
from memsim.models.graph import build_graph
from memsim.models.lora import LoraConfig, adapter_shapes
from toy import toy_config


def test_a_frozen_layer_keeps_no_activation() -> None:
    # Only v_proj is trained: nothing of the MLP's inputs is read but what SwiGLU and the norms need.
    config, lora = toy_config(), LoraConfig(rank=2, alpha=4, target_modules=("v_proj",))
    graph = build_graph(config, lora, 5, 32)
    assert {"mlp_norm", "swiglu"}.isdisjoint(graph.residuals)
    assert {"x", "attn_norm", "v.h", "gate", "up"} <= set(graph.residuals)


def test_the_first_block_computes_no_gradient_for_its_input() -> None:
    graph = build_graph(toy_config(), LoraConfig(rank=2, alpha=4), 5, 32)
    ops = [node.op for node in graph.first_backward.nodes]
    assert "rmsnorm_backward_input" in ops
    assert len(graph.backward.nodes) > len(ops)
    # q, k and v of the first block need neither W nor A for anything below them.
    products = [node for node in graph.first_backward.nodes if node.op == "linear_q4_backward_input"]
    assert not any("q_proj" in name or "k_proj" in name for node in products for name in node.inputs)


def test_every_adapter_gets_exactly_one_gradient() -> None:
    config, lora = toy_config(), LoraConfig(rank=2, alpha=4)
    backward = build_graph(config, lora, 5, 32).backward
    defined = [name for node in backward.nodes for name in node.outputs]
    for name in ("x", *adapter_shapes(config, lora)):
        assert defined.count(backward.gradients[name]) == 1


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


def test_block_programs_are_the_same_for_every_schedule() -> None:
    one = block_program(toy_config(), LoraConfig(), 5, 32)
    assert one == block_program(toy_config(), LoraConfig(), 5, 32)
    assert one.inputs[0] == "x" and one.outputs == ("y",)
