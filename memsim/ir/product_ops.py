"""Products with packed and dense matrices, and the gradients of what is trained beside them."""

from collections.abc import Sequence

from memsim.ir.matrix_format import format_of
from memsim.ir.op import Attrs, OpTable, integer, require
from memsim.ir.program import TensorType

PRODUCT_OPS = OpTable()


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


@PRODUCT_OPS.op("embedding_q4")
def _embedding_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """X [T, C] = ``scale`` times rows ``ids`` [T] of the packed embedding (q, scales)."""
    require(len(i) == 3 and i[0].dtype == "u32", i)
    require_packed(i[1], i[2], attrs)
    return [TensorType((i[0].shape[0], integer(attrs, "n_columns")))]


@PRODUCT_OPS.op("unpack_q4")
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


@PRODUCT_OPS.op("linear")
def _linear(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, N] = x [T, K] w[N, K]^T (+ bias [N]) (+ lora_scale (x A^T) B^T), from (x, w, [bias], [A, B])."""
    n_rows, n_columns = i[1].shape
    return _linear_outputs(i[0], i[2:], (n_rows, n_columns), attrs)


@PRODUCT_OPS.op("linear_backward_input", may_reuse=((0, 2),), beside_adapter=((0, 4),))
def _linear_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, K] = dy [T, N] w[N, K] (+ lora_scale (dy B) A) (+ dx_in), from (dy, w, [A, B], [dx_in])."""
    n_rows, n_columns = i[1].shape
    return _linear_backward_outputs(i[0], i[2:], (n_rows, n_columns), attrs)


@PRODUCT_OPS.op("linear_q4")
def _linear_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """As ``linear`` with W packed (q, scales), unpacked tile by tile: from (x, q, scales, [bias], [A, B])."""
    require_packed(i[1], i[2], attrs)
    return _linear_outputs(i[0], i[3:], matrix_shape(attrs), attrs)


@PRODUCT_OPS.op("linear_q4_backward_input", may_reuse=((0, 3),), beside_adapter=((0, 5),))
def _linear_q4_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """As ``linear_backward_input`` with W packed: from (dy, q, scales, [A, B], [dx_in])."""
    require_packed(i[1], i[2], attrs)
    return _linear_backward_outputs(i[0], i[3:], matrix_shape(attrs), attrs)


@PRODUCT_OPS.op("lora_backward", may_reuse=((0, 4), (1, 5)))
def _lora_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """DA [R, K] = dh^T x (+ dA_in), dB [N, R] = dy^T h (+ dB_in), and a workspace for h and dh [2, T, R].

    From (dy [T, N], x [T, K], A, B), with h = lora_scale x A^T and dh = lora_scale dy B.
    """
    dy, x, a, b = i[:4]
    require(len(i) in (4, 6) and dy.shape[0] == x.shape[0], i)
    rank = adapter_rank((a, b), dy.shape[1], x.shape[1], i)
    return [a, b, TensorType((2, x.shape[0], rank))]


@PRODUCT_OPS.op("linear_backward_weight", may_reuse=((0, 2),))
def _linear_backward_weight(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dw [N, K] = dy^T x (+ dw_in), from (dy [T, N], x [T, K])."""
    require(len(i) in (2, 3) and i[0].shape[0] == i[1].shape[0], i)
    return [TensorType((i[0].shape[1], i[1].shape[1]))]


@PRODUCT_OPS.op("sum_rows", may_reuse=((0, 1),))
def _sum_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The gradient of a bias: the sum [N] of the rows of dy [T, N] (+ db_in)."""
    require(len(i) in (1, 2), i)
    return [TensorType(i[0].shape[1:])]
