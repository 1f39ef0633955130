"""What an op is: one row of the op table, and the checks that shape rules share.

Shape letters: T tokens, C hidden_size, NH query heads, NKV key-value heads, D head_dim, V vocab_size, R LoRA rank,
K in_features, N out_features. A backward op that takes one input more than its shortest form adds to that input
(``dx = dx_in + ...``) instead of starting from zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto

from memsim.ir.gradients import GradientRule
from memsim.ir.program import Attr, TensorType
from memsim.ir.tangents import TangentRule
from memsim.ir.work import OpWork

Attrs = Mapping[str, Attr]
Pairs = tuple[tuple[int, int], ...]
ShapeRule = Callable[[Sequence[TensorType], Attrs], list[TensorType]]


class OpError(ValueError):
    """The inputs of an op do not fit it. A bug in whoever built the program, never the user's doing."""


class Effect(Flag):
    """What an op does to storage beside writing its outputs.

    PAGES_IN: maps a part's weight file; its outputs are resident from then on. ASKS_AHEAD: asks for such a file in
    advance. EVICTS: lets the mapped weights among its inputs go. UNPACKS: makes a dense matrix of stored weights.
    SPILLS: writes activations to the scratch file. RESTORES: copies them back. LOADS: copies parameters or optimizer
    state from there. GATHERS: reads only those rows there that it defines. REPLACES: writes over the scratch value
    among its inputs without reading it.
    """

    NONE = 0
    PAGES_IN = auto()
    ASKS_AHEAD = auto()
    EVICTS = auto()
    UNPACKS = auto()
    SPILLS = auto()
    RESTORES = auto()
    LOADS = auto()
    GATHERS = auto()
    REPLACES = auto()
    COPIES_OUT = SPILLS | REPLACES
    COPIES_IN = RESTORES | LOADS


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One row of the op table: all that is known of an op but its kernel.

    Attributes:
        name: What nodes call it.
        shape: The types of the outputs, from those of the inputs; None where the outputs are declared by the node
            itself (storage ops).
        work: How its arithmetic and its bytes are counted.
        may_reuse: Pairs (output, input): the output may be written over the input's storage if nothing reads the
            input later.
        beside_adapter: The same for a node with a LoRA adapter among its inputs, where that makes a difference.
        gradient: Its backward; None if nothing that is trained lies below it.
        tangent: What computes it together with its derivative; None if no forward gradient passes through it.
        sees_sequence: Whether a row of its output depends on where in a sequence the row stands, so that it must know
            how many sequences lie below one another (attribute ``lanes``).
        effect: What it does to storage.
    """

    name: str
    shape: ShapeRule | None
    work: OpWork
    may_reuse: Pairs = ()
    beside_adapter: Pairs = ()
    gradient: GradientRule | None = None
    tangent: TangentRule | None = None
    sees_sequence: bool = False
    effect: Effect = Effect.NONE

    def reusable(self, attrs: Attrs) -> Pairs:
        """Return the pairs (output, input) for a node with these attributes."""
        return self.beside_adapter if self.beside_adapter and "lora_scale" in attrs else self.may_reuse


class OpTable(dict[str, Op]):
    """The rows of a family of ops."""

    def op(
        self,
        name: str,
        *,
        work: OpWork,
        may_reuse: Pairs = (),
        beside_adapter: Pairs = (),
        gradient: GradientRule | None = None,
        tangent: TangentRule | None = None,
        sees_sequence: bool = False,
        effect: Effect = Effect.NONE,
    ) -> Callable[[ShapeRule], ShapeRule]:
        """Return a decorator that enters a row by its shape rule: the arguments are those of ``Op``."""

        def enter(rule: ShapeRule) -> ShapeRule:
            self[name] = Op(
                name=name,
                shape=rule,
                work=work,
                may_reuse=may_reuse,
                beside_adapter=beside_adapter,
                gradient=gradient,
                tangent=tangent,
                sees_sequence=sees_sequence,
                effect=effect,
            )
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
