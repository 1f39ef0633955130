"""Products with packed and dense matrices, and the gradients of what is trained beside them."""

from collections.abc import Sequence

from memsim.ir.gradients import Backward
from memsim.ir.matrix_format import format_of
from memsim.ir.op import Attrs, Effect, OpTable, integer, lanes_of, require
from memsim.ir.program import Node, TensorType
from memsim.ir.tangents import WithTangent, same_op, tangent_of
from memsim.ir.work import ELEMENTWISE, Kind, OpWork, Types

PRODUCT_OPS = OpTable()

PRODUCT_ROWS = 256
"""Rows for which a product with a packed matrix unpacks a tile of it once: ``ROWS`` of the f32 kernels.

In bf16 it is twice as many, which is not counted: a program is the same on either path.
"""


def require_packed(q: TensorType, scales: TensorType, attrs: Attrs) -> None:
    """Check that (q, scales) store a matrix [n_rows, n_columns] in some format: kernels read them by address.

    The format follows from the shapes.
    """
    n_rows, n_columns, group = (integer(attrs, key) for key in ("n_rows", "n_columns", "group_size"))
    require(q.dtype == "u32" and scales.dtype == "f16", (q, scales))
    require(format_of(q.shape, scales.shape, n_rows, n_columns, group) is not None, (q, scales))


def matrix_shape(attrs: Attrs) -> tuple[int, int]:
    """Return (N, K) of a packed matrix."""
    return integer(attrs, "n_rows"), integer(attrs, "n_columns")


def adapter_rank(pair: Sequence[TensorType], n_rows: int, n_columns: int, inputs: Sequence[TensorType]) -> int:
    """Check a LoRA adapter A [R, K], B [N, R] of a matrix [N, K]; return R."""
    a, b = pair
    rank = a.shape[0]
    require(a.shape == (rank, n_columns) and b.shape == (n_rows, rank), inputs)
    return rank


def matrix_size(attrs: Attrs) -> int:
    """Return the weights of a packed matrix."""
    n_rows, n_columns = matrix_shape(attrs)
    return n_rows * n_columns


def adapter_size(pair: Types, attrs: Attrs) -> int:
    """Return the parameters of a fused adapter: a forward makes x A^T and h B^T, a backward dy B and dh A.

    Of adapters stacked for lanes a token meets its own lane's only.
    """
    return sum(kind.size for kind in pair) // lanes_of(attrs) if "lora_scale" in attrs else 0


def once(i: Types, attrs: Attrs) -> int:
    """The whole matrix is unpacked once."""
    return 1


def _by_rows(i: Types, attrs: Attrs) -> int:
    """Products unpack a tile of the matrix once for so many rows of the other factor."""
    return -(-i[0].shape[0] // PRODUCT_ROWS)


def _gathered(i: Types, o: Types) -> int:
    """Rows of a packed embedding are gathered one by one; each panel of q holds 16 of them."""
    ids, q, scales = i
    return ids.n_bytes + ids.shape[0] * (q.n_bytes + scales.n_bytes) // (q.shape[0] * q.shape[2]) + o[0].n_bytes


@PRODUCT_OPS.op("embedding_q4", work=OpWork(Kind.ELEMENTWISE, moves=_gathered))
def _embedding_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """X [T, C] = ``scale`` times rows ``ids`` [T] of the packed embedding (q, scales)."""
    require(len(i) == 3 and i[0].dtype == "u32", i)
    require_packed(i[1], i[2], attrs)
    return [TensorType((i[0].shape[0], integer(attrs, "n_columns")))]


@PRODUCT_OPS.op("unpack_q4", effect=Effect.UNPACKS, work=OpWork(Kind.UNPACK, passes=once))
def _unpack_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """W [N, K] from the packed matrix (q, scales)."""
    require(len(i) == 2, i)
    require_packed(i[0], i[1], attrs)
    return [TensorType((integer(attrs, "n_rows"), integer(attrs, "n_columns")))]


def _linear_outputs(
    x: TensorType, bias_and_adapter: Sequence[TensorType], shape: tuple[int, int], attrs: Attrs
) -> list[TensorType]:
    """Return y [T, N] and, with an adapter, the workspace h [T, R]."""
    n_rows, n_columns = shape
    has_adapter = "lora_scale" in attrs
    require(x.shape[1] == n_columns and len(bias_and_adapter) - 2 * has_adapter in (0, 1), (x, *bias_and_adapter))
    y = TensorType((x.shape[0], n_rows))
    if not has_adapter:
        return [y]
    return [y, TensorType((x.shape[0], adapter_rank(bias_and_adapter[-2:], n_rows, n_columns, bias_and_adapter)))]


def _linear_backward_outputs(
    dy: TensorType, adapter_and_dx: Sequence[TensorType], shape: tuple[int, int], attrs: Attrs
) -> list[TensorType]:
    """Return dx [T, K] and, with an adapter, the workspace dh [T, R]."""
    n_rows, n_columns = shape
    has_adapter = "lora_scale" in attrs
    require(dy.shape[1] == n_rows and len(adapter_and_dx) - 2 * has_adapter in (0, 1), (dy, *adapter_and_dx))
    dx = TensorType((dy.shape[0], n_columns))
    if not has_adapter:
        return [dx]
    return [dx, TensorType((dy.shape[0], adapter_rank(adapter_and_dx[:2], n_rows, n_columns, adapter_and_dx)))]


def _linear_gradient(b: Backward, node: Node) -> None:
    x, w, *biases = node.inputs
    dy = b.grad(node.outputs[0])
    b.contribute(node, "linear_backward_weight", [dy, x], w)
    for bias in biases:
        b.contribute(node, "sum_rows", [dy], bias)
    b.contribute(node, "linear_backward_input", [dy, w], x)


@PRODUCT_OPS.op(
    "linear",
    gradient=_linear_gradient,
    work=OpWork(Kind.DENSE, lambda i, a: 2 * i[0].shape[0] * (i[1].size + adapter_size(i[-2:], a))),
)
def _linear(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, N] = x [T, K] w[N, K]^T (+ bias [N]) (+ lora_scale (x A^T) B^T), from (x, w, [bias], [A, B])."""
    n_rows, n_columns = i[1].shape
    return _linear_outputs(i[0], i[2:], (n_rows, n_columns), attrs)


@PRODUCT_OPS.op(
    "linear_backward_input",
    may_reuse=((0, 2),),
    beside_adapter=((0, 4),),
    work=OpWork(Kind.DENSE, lambda i, a: 2 * i[0].shape[0] * (i[1].size + adapter_size(i[2:4], a))),
)
def _linear_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, K] = dy [T, N] w[N, K] (+ lora_scale (dy B) A) (+ dx_in), from (dy, w, [A, B], [dx_in])."""
    n_rows, n_columns = i[1].shape
    return _linear_backward_outputs(i[0], i[2:], (n_rows, n_columns), attrs)


def _linear_q4_gradient(b: Backward, node: Node) -> None:
    x, q, scales = node.inputs[:3]
    dy = b.grad(node.outputs[0])
    adapter = node.inputs[-2:] if "lora_scale" in node.attrs else ()
    if adapter:  # first, since x may end here
        b.emit(node, "lora_backward", [dy, x, *adapter], *adapter, f"{node.outputs[1]}.both")
    for bias in node.inputs[3 : len(node.inputs) - len(adapter)]:
        b.contribute(node, "sum_rows", [dy], bias)
    b.contribute(node, "linear_q4_backward_input", [dy, q, scales, *adapter], x, *node.outputs[1:])


def _linear_q4_tangent(node: Node) -> WithTangent:
    """An adapter brings its own tangents and a workspace."""
    given = same_op(node)._replace(op="linear_q4_tangent")
    if "lora_scale" not in node.attrs:
        return given
    tangents = [tangent_of(name) for name in given.inputs[-2:]]
    return given._replace(inputs=[*given.inputs, *tangents], outputs=[*given.outputs, f"{given.outputs[0]}.work"])


@PRODUCT_OPS.op(
    "linear_q4",
    gradient=_linear_q4_gradient,
    tangent=_linear_q4_tangent,
    work=OpWork(Kind.MATMUL, lambda i, a: 2 * i[0].shape[0] * (matrix_size(a) + adapter_size(i[-2:], a)), _by_rows),
)
def _linear_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """As ``linear`` with W packed (q, scales), unpacked tile by tile: from (x, q, scales, [bias], [A, B])."""
    require_packed(i[1], i[2], attrs)
    return _linear_outputs(i[0], i[3:], matrix_shape(attrs), attrs)


@PRODUCT_OPS.op(
    "linear_q4_backward_input",
    may_reuse=((0, 3),),
    beside_adapter=((0, 5),),
    work=OpWork(Kind.MATMUL, lambda i, a: 2 * i[0].shape[0] * (matrix_size(a) + adapter_size(i[3:5], a)), _by_rows),
)
def _linear_q4_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """As ``linear_backward_input`` with W packed: from (dy, q, scales, [A, B], [dx_in])."""
    require_packed(i[1], i[2], attrs)
    return _linear_backward_outputs(i[0], i[3:], matrix_shape(attrs), attrs)


# x A^T and dy B again, dh^T x, dy^T h.
@PRODUCT_OPS.op(
    "lora_backward",
    may_reuse=((0, 4), (1, 5)),
    work=OpWork(Kind.DENSE, lambda i, a: 4 * i[0].shape[0] * (i[2].size + i[3].size)),
)
def _lora_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """DA [R, K] = dh^T x (+ dA_in), dB [N, R] = dy^T h (+ dB_in), and a workspace for h and dh [2, T, R].

    From (dy [T, N], x [T, K], A, B), with h = lora_scale x A^T and dh = lora_scale dy B.
    """
    dy, x, a, b = i[:4]
    require(len(i) in (4, 6) and dy.shape[0] == x.shape[0], i)
    rank = adapter_rank((a, b), dy.shape[1], x.shape[1], i)
    return [a, b, TensorType((2, x.shape[0], rank))]


@PRODUCT_OPS.op(
    "linear_backward_weight",
    may_reuse=((0, 2),),
    work=OpWork(Kind.DENSE, lambda i, a: 2 * i[0].size * i[1].shape[1]),
)
def _linear_backward_weight(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dw [N, K] = dy^T x (+ dw_in), from (dy [T, N], x [T, K])."""
    require(len(i) in (2, 3) and i[0].shape[0] == i[1].shape[0], i)
    return [TensorType((i[0].shape[1], i[1].shape[1]))]


@PRODUCT_OPS.op("sum_rows", may_reuse=((0, 1),), work=ELEMENTWISE)
def _sum_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The gradient of a bias: the sum [N] of the rows of dy [T, N] (+ db_in)."""
    require(len(i) in (1, 2), i)
    return [TensorType(i[0].shape[1:])]
