"""The backward rule of every differentiable op.

A rule reads the node it differentiates, asks for the gradients of its outputs and contributes one gradient to each
input that may need one: what nobody asked for is dead code, so nothing is computed or kept for frozen weights. Packed
matrices and tables are never trained.
"""

from collections.abc import Callable
from typing import Protocol

from memsim.ir.program import Attr, Node


class Backward(Protocol):
    """What a rule may ask of the derivation (see ``autodiff``)."""

    def grad(self, name: str) -> str:
        """Return the value that holds the gradient of forward value ``name``."""

    def emit(self, node: Node, op: str, inputs: list[str], *wrt: str) -> list[str]:
        """Emit ``op`` with ``node``'s attributes; its outputs are named after ``wrt``. Return their names."""

    def contribute(self, node: Node, op: str, inputs: list[str], wrt: str, *work: str, **attrs: Attr) -> None:
        """Emit ``op``, whose first output is a contribution to the gradient of ``wrt``, added to what is there.

        Further outputs, named after ``work``, are workspace. The attributes are ``node``'s unless there are ``attrs``.
        """

    def n_rows(self, name: str) -> int:
        """Return the length of the first axis of a value."""

    def add(self, wrt: str, gradient: str) -> None:
        """Let ``gradient`` be a contribution to the gradient of ``wrt``."""


Rule = Callable[[Backward, Node], None]


def _linear_q4(b: Backward, node: Node) -> None:
    x, q, scales = node.inputs[:3]
    dy = b.grad(node.outputs[0])
    adapter = node.inputs[-2:] if "lora_scale" in node.attrs else ()
    if adapter:  # first, since x may end here
        b.emit(node, "lora_backward", [dy, x, *adapter], *adapter, f"{node.outputs[1]}.both")
    for bias in node.inputs[3 : len(node.inputs) - len(adapter)]:
        b.contribute(node, "sum_rows", [dy], bias)
    b.contribute(node, "linear_q4_backward_input", [dy, q, scales, *adapter], x, *node.outputs[1:])


def _linear(b: Backward, node: Node) -> None:
    x, w, *biases = node.inputs
    dy = b.grad(node.outputs[0])
    b.contribute(node, "linear_backward_weight", [dy, x], w)
    for bias in biases:
        b.contribute(node, "sum_rows", [dy], bias)
    b.contribute(node, "linear_backward_input", [dy, w], x)


def _rmsnorm(b: Backward, node: Node) -> None:
    x, weight = node.inputs
    dy, rstd = b.grad(node.outputs[0]), node.outputs[1]
    b.contribute(node, "rmsnorm_backward_weight", [dy, x, rstd, weight], weight)
    b.contribute(node, "rmsnorm_backward_input", [dy, x, rstd, weight], x)


def _layernorm(b: Backward, node: Node) -> None:
    x, weight, bias = node.inputs
    _, mean, rstd = node.outputs
    dy = b.grad(node.outputs[0])
    b.contribute(node, "layernorm_backward_weight", [dy, x, mean, rstd], weight)
    b.contribute(node, "sum_rows", [dy], bias)
    b.contribute(node, "layernorm_backward_input", [dy, x, mean, rstd, weight], x)


def _rope(b: Backward, node: Node) -> None:
    x, cos, sin = node.inputs
    (dx,) = b.emit(node, "rope_backward", [b.grad(node.outputs[0]), cos, sin], x)
    b.add(x, dx)


def _attention(b: Backward, node: Node) -> None:
    q, k, v, *n_valid = node.inputs
    o, lse = node.outputs
    dq, dk, dv, _ = b.emit(node, "attention_backward", [b.grad(o), q, k, v, o, lse, *n_valid], q, k, v, lse)
    b.add(q, dq)
    b.add(k, dk)
    b.add(v, dv)


def _gated(b: Backward, node: Node) -> None:
    gate, up = node.inputs
    dgate, dup = b.emit(node, f"{node.op}_backward", [b.grad(node.outputs[0]), gate, up], gate, up)
    b.add(gate, dgate)
    b.add(up, dup)


def _of_input(b: Backward, node: Node) -> None:
    x = node.inputs[0]
    (dx,) = b.emit(node, f"{node.op}_backward", [b.grad(node.outputs[0]), x], x)
    b.add(x, dx)


def _tanh(b: Backward, node: Node) -> None:
    (x,), (y,) = node.inputs, node.outputs
    (dx,) = b.emit(node, "tanh_backward", [b.grad(y), y], x)
    b.add(x, dx)


def _add(b: Backward, node: Node) -> None:
    dy = b.grad(node.outputs[0])
    for name in node.inputs:
        b.add(name, dy)


def _add_table(b: Backward, node: Node) -> None:
    b.add(node.inputs[0], b.grad(node.outputs[0]))


def _concat_rows(b: Backward, node: Node) -> None:
    dy, start = b.grad(node.outputs[0]), 0
    for name in node.inputs:
        count = b.n_rows(name)
        b.contribute(node, "take_rows", [dy], name, start=start, count=count)
        start += count


def _take_rows(b: Backward, node: Node) -> None:
    (x,) = node.inputs
    b.contribute(node, "place_rows", [b.grad(node.outputs[0])], x, start=node.attrs["start"], n_rows=b.n_rows(x))


def _place_rows(b: Backward, node: Node) -> None:
    (x,) = node.inputs
    b.contribute(node, "take_rows", [b.grad(node.outputs[0])], x, start=node.attrs["start"], count=b.n_rows(x))


def _cross_entropy(b: Backward, node: Node) -> None:
    # The loss is the last op: its own gradient is the constant attribute `scale`, so no gradient is read.
    logits, labels = node.inputs
    stats, lse = node.outputs
    (dlogits,) = b.emit(node, "cross_entropy_backward", [logits, labels, lse, stats], logits)
    b.add(logits, dlogits)


def _linear_cross_entropy_q4(b: Backward, node: Node) -> None:
    # The forward made the gradient too, in the same pass over the vocabulary.
    b.add(node.inputs[0], node.outputs[2])


RULES: dict[str, Rule] = {
    "linear_q4": _linear_q4,
    "linear": _linear,
    "rmsnorm": _rmsnorm,
    "layernorm": _layernorm,
    "rope": _rope,
    "attention": _attention,
    "swiglu": _gated,
    "geglu": _gated,
    "gelu": _of_input,
    "relu": _of_input,
    "tanh": _tanh,
    "add": _add,
    "add_row": _add_table,
    "add_table_rows": _add_table,
    "concat_rows": _concat_rows,
    "take_rows": _take_rows,
    "place_rows": _place_rows,
    "cross_entropy": _cross_entropy,
    "linear_cross_entropy_q4": _linear_cross_entropy_q4,
}
