"""Activations and sums: each element of the output is of one element of each input."""

from collections.abc import Sequence

from memsim.ir.gradients import of_first_summand, of_gate, of_input, of_output, of_sum
from memsim.ir.op import Attrs, OpTable, integer, lanes_of, require
from memsim.ir.program import TensorType
from memsim.ir.tangents import gated_op, pointwise_op, same_op
from memsim.ir.work import ELEMENTWISE, Kind, OpWork

ELEMENTWISE_OPS = OpTable()


@ELEMENTWISE_OPS.op("swiglu", may_reuse=((0, 0),), gradient=of_gate, tangent=gated_op, work=ELEMENTWISE)
def _swiglu(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """S = silu(gate) up, from (gate [T, H], up [T, H])."""
    require(i[0] == i[1], i)
    return [i[0]]


@ELEMENTWISE_OPS.op("swiglu_backward", may_reuse=((0, 1), (1, 2)), work=ELEMENTWISE)
def _swiglu_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """dgate, dup, from (ds, gate, up)."""
    return [i[1], i[2]]


@ELEMENTWISE_OPS.op("geglu", may_reuse=((0, 0),), gradient=of_gate, tangent=gated_op, work=ELEMENTWISE)
def _geglu(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """S = gelu(gate) up with the tanh form of GELU, from (gate [T, H], up [T, H])."""
    return _swiglu(i, attrs)


@ELEMENTWISE_OPS.op("geglu_backward", may_reuse=((0, 1), (1, 2)), work=ELEMENTWISE)
def _geglu_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """dgate, dup, from (ds, gate, up)."""
    return _swiglu_backward(i, attrs)


@ELEMENTWISE_OPS.op("relu", may_reuse=((0, 0),), gradient=of_input, tangent=pointwise_op, work=ELEMENTWISE)
def _relu(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, H] = max(x, 0)."""
    require(len(i) == 1, i)
    return [i[0]]


@ELEMENTWISE_OPS.op("relu_backward", may_reuse=((0, 0), (0, 1)), work=ELEMENTWISE)
def _relu_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, H], from (dy, x)."""
    require(len(i) == 2 and i[0] == i[1], i)
    return [i[1]]


@ELEMENTWISE_OPS.op("gelu", may_reuse=((0, 0),), gradient=of_input, tangent=pointwise_op, work=ELEMENTWISE)
def _gelu(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, H] = x Phi(x), the GELU with the error function."""
    return _relu(i, attrs)


@ELEMENTWISE_OPS.op("gelu_backward", may_reuse=((0, 0), (0, 1)), work=ELEMENTWISE)
def _gelu_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, H], from (dy, x)."""
    return _relu_backward(i, attrs)


@ELEMENTWISE_OPS.op("tanh", may_reuse=((0, 0),), gradient=of_output, work=ELEMENTWISE)
def _tanh(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, H] = tanh(x)."""
    return _relu(i, attrs)


@ELEMENTWISE_OPS.op("tanh_backward", may_reuse=((0, 0), (0, 1)), work=ELEMENTWISE)
def _tanh_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, H] = dy (1 - y^2), from (dy, y)."""
    return _relu_backward(i, attrs)


@ELEMENTWISE_OPS.op("add", may_reuse=((0, 0), (0, 1)), gradient=of_sum, tangent=same_op, work=ELEMENTWISE)
def _add(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y = a + b."""
    require(i[0] == i[1], i)
    return [i[0]]


@ELEMENTWISE_OPS.op(
    "add_row",
    may_reuse=((0, 0),),
    gradient=of_first_summand,
    work=OpWork(Kind.ELEMENTWISE, moves=lambda i, o: 2 * o[0].n_bytes),
)
def _add_row(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] = x + row ``row`` of a table [P, C], such as token types."""
    require(len(i) == 2 and i[0].shape[1] == i[1].shape[1] and 0 <= integer(attrs, "row") < i[1].shape[0], i)
    return [i[0]]


@ELEMENTWISE_OPS.op(
    "add_table_rows",
    may_reuse=((0, 0),),
    gradient=of_first_summand,
    tangent=pointwise_op,
    sees_sequence=True,
    work=OpWork(Kind.ELEMENTWISE, moves=lambda i, o: 3 * o[0].n_bytes),
)
def _add_table_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] = x + rows from ``start`` on of a table [P, C], such as learned positions."""
    (n_tokens, columns), (rows, table_columns), start = i[0].shape, i[1].shape, integer(attrs, "start")
    require(len(i) == 2 and columns == table_columns and 0 <= start <= rows - n_tokens // lanes_of(attrs), i)
    return [i[0]]
