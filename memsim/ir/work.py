"""What bounds an op, and how its work is counted: the part of its row that time models read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from memsim.ir.program import Attr, TensorType

Types = Sequence[TensorType]
CountRule = Callable[[Types, Mapping[str, Attr]], int]


class Kind(StrEnum):
    """What bounds an op, apart from memory.

    MATMUL: products with packed weights. DENSE: products with matrices of floats: unpacked weights, adapters.
    ATTENTION: products of activations with activations. UNPACK: INT4 to floats. ELEMENTWISE: nothing but memory.
    VOCABULARY: the same over logits, with exponentials and sums. STORAGE: files; moves bytes between them and memory.
    """

    MATMUL = "matmul"
    DENSE = "dense"
    ATTENTION = "attention"
    UNPACK = "unpack"
    ELEMENTWISE = "elementwise"
    VOCABULARY = "vocabulary"
    STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class OpWork:
    """How to count one op.

    Attributes:
        flops: From the types of the inputs and the attributes; None for none.
        passes: How often the packed matrix of the attributes is unpacked; None for never.
        moves: Bytes moved, from the types of inputs and outputs, where that is not all of them once.
    """

    kind: Kind
    flops: CountRule | None = None
    passes: CountRule | None = None
    moves: Callable[[Types, Types], int] | None = None


ELEMENTWISE = OpWork(Kind.ELEMENTWISE)
VOCABULARY = OpWork(Kind.VOCABULARY)
STORAGE = OpWork(Kind.STORAGE)
NOTHING = OpWork(Kind.STORAGE, moves=lambda i, o: 0)
