"""Block programs for several sequences at once: lanes, one below the other in the rows of every activation.

A lane is a copy of the sequence that meets adapters of its own. Whatever treats each token by itself needs no change;
what looks at a sequence is told the number of lanes, and a product with adapters which of their ranks are whose.
"""

from memsim.ir.builder import Builder
from memsim.ir.ops import OPS
from memsim.ir.ops.zeroth_order import lane_slot
from memsim.ir.program import Program, TensorType


def lane_axis(name: str) -> int:
    """Return the axis of adapter tensor ``name`` that is its rank, along which lanes are stacked."""
    return 0 if name.endswith(".lora_A") else 1


def stacked(kind: TensorType, axis: int, lanes: int) -> TensorType:
    """Return the type of ``lanes`` tensors of ``kind`` side by side, as ``perturb`` makes them."""
    if lanes == 1:
        return kind
    shape = list(kind.shape)
    shape[axis] = lanes * lane_slot(shape[axis])
    return TensorType(tuple(shape))


def in_lanes(program: Program, lanes: int, own_adapters: bool) -> Program:
    """Return a block program or head for ``lanes`` sequences.

    Args:
        program: Its first input is the activation; a label has no lanes of its own.
        lanes: At least 1; with 1 nothing changes.
        own_adapters: Each lane has adapters of its own; otherwise all share the block's.
    """
    if lanes == 1:
        return program
    builder = Builder()
    x = program.inputs[0]
    for name in program.inputs:
        value = program.values[name]
        kind = value.type
        if name == x:
            kind = TensorType((lanes * kind.shape[0], *kind.shape[1:]), kind.dtype)
        elif own_adapters and ".lora_" in name:
            kind = stacked(kind, lane_axis(name), lanes)
        builder.input(name, kind, value.space, value.source)
    for node in program.nodes:
        told = OPS[node.op].sees_sequence or (own_adapters and "lora_scale" in node.attrs)
        builder.emit(node.op, node.inputs, node.outputs, **node.attrs, **({"lanes": lanes} if told else {}))
    return builder.build(program.outputs)
