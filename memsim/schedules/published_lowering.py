"""How the published runtime (MeBP and MeZO on MLX, arXiv 2510.03425) would execute a step.

The math is that of our own lowering; what differs is what such a runtime holds and for how long:

- activations, adapters and their gradients have 2 bytes an element, logits 4;
- a block's recompute and backward are one differentiated function: nothing of it is freed or overwritten before it
  has ended;
- the embedding, which is the head as well, stays packed in memory of the GPU's;
- the next block's weights are unpacked, to 2 bytes each, while this one computes;
- MeZO is two forwards, around updates of the adapters in place.

Sources: the public code that implements the paper's step, and the table itself (which of the values that could be live
are live at its peaks). No rule depends on the model.
"""

from collections.abc import Mapping
from dataclasses import replace

from memsim.ir.op import Effect
from memsim.ir.ops import effect_of
from memsim.ir.program import Node, Program, Repeat, Space, TensorType, Value
from memsim.models.graph import ModelGraph
from memsim.models.parts import block_part, head_matrix, matrices, part_tensors
from memsim.schedules.choices import mebp
from memsim.schedules.lowering import lower, lower_evaluation
from memsim.schedules.optimizers import OptimizerConfig

METHODS = ("mezo", "mebp")

PASSES: Mapping[str, int] = {
    # log-sum-exp, and the arg-max of the accuracy.
    "cross_entropy": 2,
    # exp(logits - lse), and the product with the gradient of the mean.
    "cross_entropy_backward": 2,
}
"""How often an op that is one kernel here passes over its operands there: kernels of their own, one after the other."""

_HALF = "f16"


def lower_published(graph: ModelGraph, method: str) -> Program:
    """Return the step program of ``mezo`` or ``mebp`` as the published runtime would hold its values.

    Its types are that runtime's, so that it can be planned and simulated, and not executed.
    """
    choices = mebp(graph.config.num_hidden_layers, graph.residuals)
    if method == "mebp":
        return _hold(_retyped(lower(graph, choices, OptimizerConfig("sgd"))), graph)
    return _hold(_retyped(_two_forwards(lower_evaluation(graph, choices))), graph)


def _two_forwards(forward: Program) -> Program:
    """Return a step of two forwards; each adapter is moved before either and after both."""
    adapters = [value for value in forward.values.values() if value.space is Space.PINNED and "lora_" in value.name]
    values = dict(forward.values)

    def move(times: str) -> list[Node]:
        nodes = []
        for old in adapters:
            moved = f"{old.name}.{times}"
            values[moved] = replace(old, name=moved, alias_of=old.name)
            nodes.append(Node("add", (old.name, old.name), (moved,), {}, old.name.partition("/")[0], "update"))
        return nodes

    before, after = move("perturbed"), move("new")
    body = (*before, *forward.nodes)
    return Program(values, forward.inputs, (), (*body, *after), Repeat(0, len(body), 2))


def _retyped(program: Program) -> Program:
    """Return ``program`` with 2 bytes an element where the published runtime has them, and no value overwritten early.

    Of logits the gradient takes the place, as it does in any runtime that frees an operand at its last use.
    """

    def retype(value: Value) -> Value:
        kept = value.space is Space.MAPPED or value.name.endswith("logits") or value.type.dtype != "f32"
        kind = value.type if kept else TensorType(value.type.shape, _HALF)
        in_place = value.alias_of if value.name.endswith("logits") or value.space is not Space.ARENA else ""
        return replace(value, type=kind, alias_of=in_place)

    return replace(program, values={name: retype(value) for name, value in program.values.items()})


def _hold(program: Program, graph: ModelGraph) -> Program:
    """Return ``program`` with what blocks recompute and differentiate alive to their end, and what is held all step."""
    nodes: list[Node] = []
    inside: dict[str, None] = {}
    for node in program.nodes:
        if Effect.PAGES_IN in effect_of(node):
            inside = {}
        if node.part.startswith("block_") and Effect.EVICTS in effect_of(node) and node.phase == "backward":
            node = replace(node, inputs=tuple(dict.fromkeys((*node.inputs, *inside))))
        inside |= {name: None for name in node.outputs if program.values[name].space is Space.ARENA}
        nodes.append(node)
    values = dict(program.values) | {value.name: value for value in _resident(graph)}
    return replace(program, values=values, nodes=tuple(nodes))


def _resident(graph: ModelGraph) -> list[Value]:
    """Return what is in memory all step beside the adapters: the embedding, and one unpacked block ahead."""
    part, matrix = head_matrix(graph.config)
    specs = part_tensors(graph.config, part, graph.formats)
    held = [
        Value(f"gpu/{name}", TensorType(spec.shape, spec.dtype), Space.PINNED, f"gpu/{name}")
        for name, spec in specs.items()
        if name.startswith(matrix)
    ]
    weights = sum(rows * columns for rows, columns in matrices(graph.config, block_part(0)).values())
    return [*held, Value("gpu/ahead", TensorType((weights,), _HALF), Space.PINNED, "gpu/ahead")]
