"""What a tangent rule is: what takes the place of a node whose rows are those of x, and below them those of x'."""

from collections.abc import Callable
from typing import NamedTuple

from memsim.ir.program import Attr, Node


class WithTangent(NamedTuple):
    """A node that computes y and y' of x and x'."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Attr]


TangentRule = Callable[[Node], WithTangent]


def tangent_of(adapter: str) -> str:
    """Return the name of the tangent of an adapter tensor."""
    return f"{adapter}.tangent"


def same_op(node: Node) -> WithTangent:
    """The op is linear in each row: with twice the rows it is as it is."""
    return WithTangent(node.op, list(node.inputs), list(node.outputs), dict(node.attrs))


def in_lanes(node: Node) -> WithTangent:
    """The op treats x and x' alike, each by the positions of its rows."""
    return same_op(node)._replace(attrs=dict(node.attrs) | {"lanes": 2})


def tangent_op(*work: str) -> TangentRule:
    """Return the rule of an op whose tangent has an op of its own, with outputs ``work`` beside those of the node."""

    def rule(node: Node) -> WithTangent:
        more = [f"{node.outputs[0]}.{name}" for name in work]
        return same_op(node)._replace(op=f"{node.op}_tangent", outputs=[*node.outputs, *more])

    return rule


def pointwise_op(node: Node) -> WithTangent:
    """One op serves every function of single elements, by its slope; an attribute says which."""
    given = same_op(node)
    return given._replace(op="pointwise_tangent", attrs=given.attrs | {"activation": node.op})


def gated_op(node: Node) -> WithTangent:
    """One op serves every gate; an attribute says which."""
    given = same_op(node)
    more = f"{node.outputs[0]}.work"
    return WithTangent("gated_tangent", given.inputs, [*given.outputs, more], given.attrs | {"activation": node.op})
