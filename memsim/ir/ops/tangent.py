"""Ops with tangents: rows of the activations are those of x, and then those of x', as many again."""

from collections.abc import Sequence

from memsim.ir.op import Attrs, OpTable, integer, require
from memsim.ir.ops.attention import attended_pairs, attention
from memsim.ir.ops.loss import all_but_workspace, head_rows, linear_cross_entropy_q4
from memsim.ir.ops.norm import rmsnorm
from memsim.ir.ops.product import adapter_rank, adapter_size, matrix_shape, matrix_size, once, require_packed
from memsim.ir.program import TensorType
from memsim.ir.work import ELEMENTWISE, Kind, OpWork

TANGENT_ROWS = 256
"""Queries whose scores, with tangents, are in memory at once."""

TANGENT_OPS = OpTable()


# Four more products with an adapter's matrices than its own, for half of the rows.
@TANGENT_OPS.op(
    "linear_q4_tangent",
    work=OpWork(Kind.MATMUL, lambda i, a: 2 * i[0].shape[0] * (matrix_size(a) + 2 * adapter_size(i[-2:], a)), once),
)
def _linear_q4_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [2 T, N] of x [2 T, K], a workspace h [2 T, R] and another, from (x, q, scales, [bias], [A, B, A', B']).

    Y' = x' W^T + scale ((x' A^T) B^T + (x A'^T) B^T + (x A^T) B'^T).
    """
    require_packed(i[1], i[2], attrs)
    n_rows, n_columns = matrix_shape(attrs)
    rows, has_adapter = i[0].shape[0], "lora_scale" in attrs
    require(i[0].shape[1] == n_columns and len(i) - 3 - 4 * has_adapter in (0, 1), i)
    y = TensorType((rows, n_rows))
    if not has_adapter:
        return [y]
    rank = adapter_rank(i[-4:-2], n_rows, n_columns, i)
    require(i[-4:-2] == i[-2:], i)
    return [y, TensorType((rows, rank)), TensorType((2, rank, n_rows))]


@TANGENT_OPS.op("rmsnorm_tangent", work=ELEMENTWISE)
def _rmsnorm_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [2 T, C] and rstd, as of ``rmsnorm`` over x, from (x [2 T, C], weight)."""
    half = TensorType((i[0].shape[0] // 2, i[0].shape[1]))
    return [i[0], rmsnorm([half, i[1]], attrs)[1]]


@TANGENT_OPS.op("layernorm_tangent", work=ELEMENTWISE)
def _layernorm_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [2 T, C], mean [T] and rstd [T], from (x [2 T, C], weight, bias)."""
    row = TensorType((i[0].shape[0] // 2,))
    return [i[0], row, row]


# Forward, three products for the scores and their tangents, two for the result: of whole rows of scores.
@TANGENT_OPS.op(
    "attention_tangent",
    work=OpWork(
        Kind.ATTENTION,
        lambda i, a: (4 * attended_pairs(i[0].shape[0] // 2, a) + 10 * (i[0].shape[0] // 2) ** 2) * i[0].shape[1],
    ),
)
def _attention_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """O [2 T, NH D], lse [NH, T] and a workspace, from (q, k, v) of 2 T rows each, and [n_valid]."""
    n_tokens, head_dim = i[0].shape[0] // 2, i[0].shape[1] // integer(attrs, "n_heads")
    work = TensorType((3 * min(n_tokens, TANGENT_ROWS) * n_tokens + 7 * n_tokens * head_dim,))
    lse = attention([*(TensorType((n_tokens, kind.shape[1])) for kind in i[:3]), *i[3:]], attrs)[1]
    return [i[0], lse, work]


@TANGENT_OPS.op("gated_tangent", work=ELEMENTWISE)
def _gated_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """S [2 T, H] and a workspace [3, T, H], from (gate, up) of 2 T rows each; ``activation`` says which."""
    require(i[0] == i[1], i)
    return [i[0], TensorType((3, i[0].shape[0] // 2, i[0].shape[1]))]


@TANGENT_OPS.op("pointwise_tangent", work=ELEMENTWISE)
def _pointwise_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [2 T, H], from x [2 T, H]; ``activation`` says which function of single elements."""
    return [i[0]]


@TANGENT_OPS.op("add_table_rows_tangent", work=ELEMENTWISE)
def _add_table_rows_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """X with rows of a table added to its first half, from (x [2 T, C], table)."""
    return [i[0]]


@TANGENT_OPS.op(
    "linear_cross_entropy_q4_tangent",
    work=OpWork(
        Kind.MATMUL,
        lambda i, a: 2 * i[0].shape[0] * matrix_size(a),
        lambda i, a: -(-i[0].shape[0] // 2 // head_rows(gradient=True)),
        all_but_workspace,
    ),
)
def _linear_cross_entropy_q4_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Stats, workspace and dx of ``linear_cross_entropy_q4`` over x, and the loss's tangent f64 [1] = <dx, x'>."""
    half = TensorType((i[0].shape[0] // 2, i[0].shape[1]))
    return [*linear_cross_entropy_q4([half, *i[1:]], attrs), TensorType((1,), "f64")]
