"""Block programs with tangents: every activation has its own rows, and below them those of its derivative.

The derivative is along one direction of the adapters, so that a forward ends in the exact directional derivative of
the loss. One rule an op says what takes its place.
"""

from memsim.ir.builder import Builder
from memsim.ir.op import OpError
from memsim.ir.program import Attr, Node, Program, TensorType

LINEAR = ("add",)
"""Ops that are as they are with twice the rows."""

_SAME_NAME = (
    "linear_q4",
    "rmsnorm",
    "layernorm",
    "attention",
    "relu",
    "gelu",
    "add_table_rows",
    "linear_cross_entropy_q4",
)
_GATED = ("swiglu", "geglu")


def tangent_of(adapter: str) -> str:
    """Return the name of the tangent of an adapter tensor."""
    return f"{adapter}.tangent"


def with_tangents(program: Program) -> Program:
    """Return a block program or head whose first input, and all that follows from it, has rows for its tangent.

    Each adapter tensor gets an input ``tangent_of`` beside it.

    Raises:
        OpError: An op has no rule.
    """
    builder = Builder()
    x = program.inputs[0]
    for name in program.inputs:
        value = program.values[name]
        kind = TensorType((2 * value.type.shape[0], *value.type.shape[1:])) if name == x else value.type
        builder.input(name, kind, value.space, value.source)
        if ".lora_" in name:
            builder.input(tangent_of(name), value.type)
    for node in program.nodes:
        op, inputs, outputs, attrs = _rule(node)
        builder.emit(op, inputs, outputs, **attrs)
    return builder.build(program.outputs)


def _rule(node: Node) -> tuple[str, list[str], list[str], dict[str, Attr]]:
    """Return op, inputs, outputs and attributes of what takes the place of ``node``."""
    inputs, outputs, attrs = list(node.inputs), list(node.outputs), dict(node.attrs)
    if node.op in LINEAR:
        return node.op, inputs, outputs, attrs
    if node.op == "rope":  # turns x and x' alike, by the same positions
        return node.op, inputs, outputs, attrs | {"lanes": 2}
    if node.op in _GATED:
        return "gated_tangent", inputs, [*outputs, f"{outputs[0]}.work"], attrs | {"activation": node.op}
    if node.op not in _SAME_NAME:
        raise OpError(f"{node.op} has no tangent rule")
    if node.op == "linear_q4" and "lora_scale" in attrs:
        inputs += [tangent_of(name) for name in inputs[-2:]]
        outputs.append(f"{outputs[0]}.work")
    if node.op == "attention":
        outputs.append(f"{outputs[0]}.work")
    if node.op == "linear_cross_entropy_q4":
        outputs.append("rho")
    return f"{node.op}_tangent", inputs, outputs, attrs
