"""The arithmetic of each node, and the bytes it moves through memory: what a time model needs to know of a step.

Bytes that a node moves to and from files are in ``traffic``. A new op needs one row in ``WORK``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from memsim.ir.op import OpError, lanes_of
from memsim.ir.ops.loss import head_rows
from memsim.ir.program import Attr, Node, Program, TensorType

PRODUCT_ROWS = 256
"""Rows for which a product with a packed matrix unpacks a tile of it once: ``ROWS`` of the f32 kernels.

In bf16 it is twice as many, which is not counted: a program is the same on either path.
"""


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
class Work:
    """The work of a node, or of several.

    Attributes:
        matmul_flops: Of matrix products with weights or adapters, packed or not; a multiply-add is two.
        attention_flops: Of the products inside attention, masked halves left out.
        unpacked_weights: INT4 weights turned into floats.
        moved_bytes: Read from and written to memory if every operand passes once: the roofline's bytes.
    """

    matmul_flops: int = 0
    attention_flops: int = 0
    unpacked_weights: int = 0
    moved_bytes: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.matmul_flops + other.matmul_flops,
            self.attention_flops + other.attention_flops,
            self.unpacked_weights + other.unpacked_weights,
            self.moved_bytes + other.moved_bytes,
        )

    @property
    def flops(self) -> int:
        """All floating-point operations that are counted; element-wise ones are not."""
        return self.matmul_flops + self.attention_flops


_Types = Sequence[TensorType]
_Attrs = Mapping[str, Attr]


@dataclass(frozen=True, slots=True)
class _Row:
    """How to count one op.

    Attributes:
        flops: From the types of the inputs and the attributes; None for none.
        passes: How often the packed matrix of the attributes is unpacked; None for never.
        moves: Bytes moved where that is not all inputs and outputs.
    """

    kind: Kind
    flops: Callable[[_Types, _Attrs], int] | None = None
    passes: Callable[[_Types, _Attrs], int] | None = None
    moves: Callable[[_Types, _Types], int] | None = None


def _size(kind: TensorType) -> int:
    return prod(kind.shape)


def _matrix(attrs: _Attrs) -> int:
    return int(attrs["n_rows"]) * int(attrs["n_columns"])


def _adapter(pair: _Types, attrs: _Attrs) -> int:
    """Return the parameters of a fused adapter: a forward makes x A^T and h B^T, a backward dy B and dh A.

    Of adapters stacked for lanes a token meets its own lane's only.
    """
    return sum(map(_size, pair)) // lanes_of(attrs) if "lora_scale" in attrs else 0


def _pairs(n_rows: int, attrs: _Attrs) -> int:
    """Return the (query, key) pairs that the mask lets through: all, or causal within ``window`` keys if not 0."""
    n_tokens = n_rows // lanes_of(attrs)
    return lanes_of(attrs) * _pairs_of_lane(n_tokens, attrs)


def _pairs_of_lane(n_tokens: int, attrs: _Attrs) -> int:
    if not attrs.get("causal", True):
        return n_tokens * n_tokens
    window = min(int(attrs.get("window", 0)) or n_tokens, n_tokens)
    return window * (window + 1) // 2 + (n_tokens - window) * window


def _once(i: _Types, a: _Attrs) -> int:
    return 1


def _by_rows(i: _Types, a: _Attrs) -> int:
    """Products unpack a tile of the matrix once for so many rows of the other factor."""
    return -(-i[0].shape[0] // PRODUCT_ROWS)


def _gathered(i: _Types, o: _Types) -> int:
    """Rows of a packed embedding are gathered one by one; each panel of q holds 16 of them."""
    ids, q, scales = i
    return ids.n_bytes + ids.shape[0] * (q.n_bytes + scales.n_bytes) // (q.shape[0] * q.shape[2]) + o[0].n_bytes


def _all_but_workspace(i: _Types, o: _Types) -> int:
    return sum(t.n_bytes for t in (*i, o[0], *o[2:]))


_ELEMENTWISE = _Row(Kind.ELEMENTWISE)
_VOCABULARY = _Row(Kind.VOCABULARY)
_STORAGE = _Row(Kind.STORAGE)
_NOTHING = _Row(Kind.STORAGE, moves=lambda i, o: 0)

WORK: dict[str, _Row] = {
    "linear": _Row(Kind.DENSE, lambda i, a: 2 * i[0].shape[0] * (_size(i[1]) + _adapter(i[-2:], a))),
    "linear_backward_input": _Row(Kind.DENSE, lambda i, a: 2 * i[0].shape[0] * (_size(i[1]) + _adapter(i[2:4], a))),
    "linear_q4": _Row(Kind.MATMUL, lambda i, a: 2 * i[0].shape[0] * (_matrix(a) + _adapter(i[-2:], a)), _by_rows),
    "linear_q4_backward_input": _Row(
        Kind.MATMUL, lambda i, a: 2 * i[0].shape[0] * (_matrix(a) + _adapter(i[3:5], a)), _by_rows
    ),
    # x A^T and dy B again, dh^T x, dy^T h.
    "lora_backward": _Row(Kind.DENSE, lambda i, a: 4 * i[0].shape[0] * (_size(i[2]) + _size(i[3]))),
    "linear_backward_weight": _Row(Kind.DENSE, lambda i, a: 2 * _size(i[0]) * i[1].shape[1]),
    # Logits, and their product with the matrix for the gradient; head_rows tokens a pass over the vocabulary.
    "linear_cross_entropy_q4": _Row(
        Kind.MATMUL,
        lambda i, a: (4 if a["gradient"] else 2) * i[0].shape[0] * _matrix(a),
        lambda i, a: -(-i[0].shape[0] // head_rows(bool(a["gradient"]))),
        _all_but_workspace,
    ),
    # Two products forward; backward makes q k^T again, then dv, dp, dq and dk.
    "attention": _Row(Kind.ATTENTION, lambda i, a: 4 * _pairs(i[0].shape[0], a) * i[0].shape[1]),
    "attention_backward": _Row(Kind.ATTENTION, lambda i, a: 10 * _pairs(i[0].shape[0], a) * i[0].shape[1]),
    "unpack_q4": _Row(Kind.UNPACK, passes=_once),
    "embedding_q4": _Row(Kind.ELEMENTWISE, moves=_gathered),
    "add_table_rows": _Row(Kind.ELEMENTWISE, moves=lambda i, o: 3 * o[0].n_bytes),
    # What is there is read too where rows are added to it.
    "take_rows": _Row(Kind.ELEMENTWISE, moves=lambda i, o: (1 + len(i)) * o[0].n_bytes),
    "take_labelled": _Row(Kind.ELEMENTWISE, moves=lambda i, o: i[1].n_bytes + 2 * o[0].n_bytes + o[1].n_bytes),
    "place_rows": _ELEMENTWISE,
    "add_row": _Row(Kind.ELEMENTWISE, moves=lambda i, o: 2 * o[0].n_bytes),
    "put_rows": _Row(Kind.ELEMENTWISE, moves=lambda i, o: 2 * i[1].n_bytes),
    # Four more products with an adapter's matrices than its own, for half of the rows.
    "linear_q4_tangent": _Row(
        Kind.MATMUL,
        lambda i, a: 2 * i[0].shape[0] * (_matrix(a) + 2 * _adapter(i[-2:], a)),
        _once,
    ),
    "linear_cross_entropy_q4_tangent": _Row(
        Kind.MATMUL,
        lambda i, a: 2 * i[0].shape[0] * _matrix(a),
        lambda i, a: -(-i[0].shape[0] // 2 // head_rows(gradient=True)),
        _all_but_workspace,
    ),
    # Forward, three products for the scores and their tangents, two for the result: of whole rows of scores.
    "attention_tangent": _Row(
        Kind.ATTENTION,
        lambda i, a: (4 * _pairs(i[0].shape[0] // 2, a) + 10 * (i[0].shape[0] // 2) ** 2) * i[0].shape[1],
    ),
    "rmsnorm_tangent": _ELEMENTWISE,
    "layernorm_tangent": _ELEMENTWISE,
    "gated_tangent": _ELEMENTWISE,
    "relu_tangent": _ELEMENTWISE,
    "gelu_tangent": _ELEMENTWISE,
    "add_table_rows_tangent": _ELEMENTWISE,
    "repeat_rows": _ELEMENTWISE,
    "concat_rows": _ELEMENTWISE,
    "perturb": _ELEMENTWISE,
    "zo_update": _ELEMENTWISE,
    "sum_losses": _ELEMENTWISE,
    "estimate": _STORAGE,
    "accept": _STORAGE,
    "emit_estimate": _STORAGE,
    "unpack_bf16": _ELEMENTWISE,
    "embedding_bf16": _ELEMENTWISE,
    "linear_rows": _Row(
        Kind.DENSE,
        lambda i, a: 2 * i[0].shape[0] * _size(i[1]),
        moves=lambda i, o: i[0].n_bytes + i[1].n_bytes + i[0].shape[0] * i[1].shape[0] * 4,
    ),
    "cross_entropy_rows": _Row(Kind.DENSE, lambda i, a: 2 * i[0].shape[0] * _size(i[1])),
    "cross_entropy_stats": _STORAGE,
    "zo_update_bf16": _ELEMENTWISE,
    "load_rows": _Row(Kind.STORAGE, moves=lambda i, o: o[0].n_bytes),
    "page_in": _NOTHING,
    "prefetch": _NOTHING,
    "evict": _NOTHING,
    "next_batch": _STORAGE,
    "emit_loss": _STORAGE,
    "balloon": _NOTHING,
    "rmsnorm": _ELEMENTWISE,
    "rmsnorm_backward_input": _ELEMENTWISE,
    "rmsnorm_backward_weight": _ELEMENTWISE,
    "layernorm": _ELEMENTWISE,
    "layernorm_backward_input": _ELEMENTWISE,
    "layernorm_backward_weight": _ELEMENTWISE,
    "sum_rows": _ELEMENTWISE,
    "relu": _ELEMENTWISE,
    "relu_backward": _ELEMENTWISE,
    "gelu": _ELEMENTWISE,
    "gelu_backward": _ELEMENTWISE,
    "tanh": _ELEMENTWISE,
    "tanh_backward": _ELEMENTWISE,
    "rope": _ELEMENTWISE,
    "rope_backward": _ELEMENTWISE,
    "swiglu": _ELEMENTWISE,
    "swiglu_backward": _ELEMENTWISE,
    "geglu": _ELEMENTWISE,
    "geglu_backward": _ELEMENTWISE,
    "add": _ELEMENTWISE,
    "cross_entropy": _VOCABULARY,
    "cross_entropy_backward": _VOCABULARY,
    "zero": _ELEMENTWISE,
    "sgd": _ELEMENTWISE,
    "momentum": _ELEMENTWISE,
    "adamw": _ELEMENTWISE,
    "spill": _STORAGE,
    "restore": _STORAGE,
    "load": _STORAGE,
    "store": _STORAGE,
}


def node_kind(node: Node) -> Kind:
    """Return what bounds ``node``.

    Raises:
        OpError: Its op has no row in the table.
    """
    return _row(node).kind


def node_work(program: Program, node: Node) -> Work:
    """Return the work of one execution of ``node``.

    Raises:
        OpError: Its op has no row in the table.
    """
    row = _row(node)
    inputs = [program.values[name].type for name in node.inputs]
    outputs = [program.values[name].type for name in node.outputs]
    flops = row.flops(inputs, node.attrs) if row.flops else 0
    attends = row.kind is Kind.ATTENTION
    return Work(
        matmul_flops=0 if attends else flops,
        attention_flops=flops if attends else 0,
        unpacked_weights=row.passes(inputs, node.attrs) * _matrix(node.attrs) if row.passes else 0,
        moved_bytes=row.moves(inputs, outputs) if row.moves else sum(t.n_bytes for t in (*inputs, *outputs)),
    )


def step_work(program: Program) -> Work:
    """Return the work of one whole step, every micro-batch included."""
    each = [node_work(program, node) for node in program.nodes]
    total = Work()
    for index in program.order():
        total += each[index]
    return total


def _row(node: Node) -> _Row:
    if node.op not in WORK:
        raise OpError(f"{node.op} has no row in the table of work (memsim/planner/work.py)")
    return WORK[node.op]
