"""Block programs with tangents: every activation has its own rows, and below them those of its derivative.

The derivative is along one direction of the adapters, so that a forward ends in the exact directional derivative of
the loss. An op's row says what takes its place.
"""

from memsim.ir.builder import Builder
from memsim.ir.op import OpError
from memsim.ir.ops import OPS
from memsim.ir.program import Program, TensorType
from memsim.ir.tangents import tangent_of


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
        rule = OPS[node.op].tangent
        if rule is None:
            raise OpError(f"{node.op} has no tangent rule")
        both = rule(node)
        builder.emit(both.op, both.inputs, both.outputs, **both.attrs)
    return builder.build(program.outputs)
