"""What a backward rule is, and the rules that several ops share.

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


GradientRule = Callable[[Backward, Node], None]


def of_input(b: Backward, node: Node) -> None:
    """The backward op reads dy and x."""
    x = node.inputs[0]
    (dx,) = b.emit(node, f"{node.op}_backward", [b.grad(node.outputs[0]), x], x)
    b.add(x, dx)


def of_output(b: Backward, node: Node) -> None:
    """The backward op reads dy and y."""
    (x,), (y,) = node.inputs, node.outputs
    (dx,) = b.emit(node, f"{node.op}_backward", [b.grad(y), y], x)
    b.add(x, dx)


def of_gate(b: Backward, node: Node) -> None:
    """The backward op reads dy and both factors, gate and up."""
    gate, up = node.inputs
    dgate, dup = b.emit(node, f"{node.op}_backward", [b.grad(node.outputs[0]), gate, up], gate, up)
    b.add(gate, dgate)
    b.add(up, dup)


def of_sum(b: Backward, node: Node) -> None:
    """Every summand has the gradient of the sum."""
    dy = b.grad(node.outputs[0])
    for name in node.inputs:
        b.add(name, dy)


def of_first_summand(b: Backward, node: Node) -> None:
    """The first summand has the gradient of the sum; the other is a table, which is never trained."""
    b.add(node.inputs[0], b.grad(node.outputs[0]))
