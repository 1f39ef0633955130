"""What an op is: one row of the op table, and the checks that shape rules share.

Shape letters: T tokens, C hidden_size, NH query heads, NKV key-value heads, D head_dim, V vocab_size, R LoRA rank,
K in_features, N out_features. A backward op that takes one input more than its shortest form adds to that input
(``dx = dx_in + ...``) instead of starting from zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memsim.ir.program import Attr, TensorType

Attrs = Mapping[str, Attr]
Pairs = tuple[tuple[int, int], ...]
ShapeRule = Callable[[Sequence[TensorType], Attrs], list[TensorType]]


class OpError(ValueError):
    """The inputs of an op do not fit it. A bug in whoever built the program, never the user's doing."""


@dataclass(frozen=True, slots=True)
class Op:
    """One row of the op table.

    Attributes:
        shape: The types of the outputs, from those of the inputs; None where the outputs are declared by the node
            itself (storage ops).
        may_reuse: Pairs (output, input): the output may be written over the input's storage if nothing reads the
            input later.
        beside_adapter: The same for a node with a LoRA adapter among its inputs, where that makes a difference.
    """

    name: str
    shape: ShapeRule | None
    may_reuse: Pairs = ()
    beside_adapter: Pairs = ()

    def reusable(self, attrs: Attrs) -> Pairs:
        """Return the pairs (output, input) for a node with these attributes."""
        return self.beside_adapter if self.beside_adapter and "lora_scale" in attrs else self.may_reuse


class OpTable(dict[str, Op]):
    """The rows of a family of ops."""

    def op(self, name: str, may_reuse: Pairs = (), beside_adapter: Pairs = ()) -> Callable[[ShapeRule], ShapeRule]:
        """Return a decorator that enters a shape rule: the arguments are those of ``Op``."""

        def enter(rule: ShapeRule) -> ShapeRule:
            self[name] = Op(name, rule, may_reuse, beside_adapter)
            return rule

        return enter


def require(condition: bool, inputs: Sequence[TensorType]) -> None:
    """Refuse a node whose inputs do not fit its op.

    Raises:
        OpError: ``condition`` is false.
    """
    if not condition:
        raise OpError(f"inputs do not fit: {', '.join(map(str, inputs))}")


def integer(attrs: Attrs, key: str) -> int:
    """Return an attribute that must be an integer.

    Raises:
        OpError: It is none.
    """
    value = attrs[key]
    if not isinstance(value, int):
        raise OpError(f"{key} must be an integer, not {value!r}")
    return value


def lanes_of(attrs: Attrs) -> int:
    """Return how many sequences of equal length lie below one another in the rows of a node's operands."""
    return integer(attrs, "lanes") if "lanes" in attrs else 1
