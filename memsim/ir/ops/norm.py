"""Normalisations of rows, and their gradients."""

from collections.abc import Sequence

from memsim.ir.gradients import Backward
from memsim.ir.op import Attrs, OpTable, require
from memsim.ir.program import Node, TensorType
from memsim.ir.tangents import tangent_op
from memsim.ir.work import ELEMENTWISE

NORM_OPS = OpTable()


def _rmsnorm_gradient(b: Backward, node: Node) -> None:
    x, weight = node.inputs
    dy, rstd = b.grad(node.outputs[0]), node.outputs[1]
    b.contribute(node, "rmsnorm_backward_weight", [dy, x, rstd, weight], weight)
    b.contribute(node, "rmsnorm_backward_input", [dy, x, rstd, weight], x)


@NORM_OPS.op("rmsnorm", gradient=_rmsnorm_gradient, tangent=tangent_op(), work=ELEMENTWISE)
def rmsnorm(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] = x rstd weight and rstd [T] = 1 / sqrt(mean(x^2) + eps), from (x, weight [C]).

    A weight of D < C columns norms each D columns by themselves, as one head: rstd is then [T C / D].
    """
    (rows, columns), (length,) = i[0].shape, i[1].shape
    require(length > 0 and columns % length == 0, i)
    return [i[0], TensorType((rows * (columns // length),))]


@NORM_OPS.op("rmsnorm_backward_input", may_reuse=((0, 4),), work=ELEMENTWISE)
def _rmsnorm_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, C] (+ dx_in), from (dy, x, rstd, weight)."""
    require(len(i) in (4, 5) and i[0] == i[1] and rmsnorm((i[1], i[3]), attrs)[1] == i[2], i)
    return [i[1]]


@NORM_OPS.op("rmsnorm_backward_weight", may_reuse=((0, 4),), work=ELEMENTWISE)
def _rmsnorm_backward_weight(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dweight [C], or [D] where each D columns are normed by themselves (+ dw_in), from (dy, x, rstd, weight)."""
    require(len(i) in (4, 5) and i[0] == i[1] and rmsnorm((i[1], i[3]), attrs)[1] == i[2], i)
    return [i[3]]


def _layernorm_gradient(b: Backward, node: Node) -> None:
    x, weight, bias = node.inputs
    _, mean, rstd = node.outputs
    dy = b.grad(node.outputs[0])
    b.contribute(node, "layernorm_backward_weight", [dy, x, mean, rstd], weight)
    b.contribute(node, "sum_rows", [dy], bias)
    b.contribute(node, "layernorm_backward_input", [dy, x, mean, rstd, weight], x)


@NORM_OPS.op("layernorm", gradient=_layernorm_gradient, tangent=tangent_op(), work=ELEMENTWISE)
def _layernorm(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] = (x - mean) rstd weight + bias, mean [T] and rstd [T], from (x, weight [C], bias [C])."""
    require(len(i) == 3 and i[0].shape[1:] == i[1].shape == i[2].shape, i)
    row = TensorType((i[0].shape[0],))
    return [i[0], row, row]


@NORM_OPS.op("layernorm_backward_input", may_reuse=((0, 5),), work=ELEMENTWISE)
def _layernorm_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, C] (+ dx_in), from (dy, x, mean, rstd, weight)."""
    require(len(i) in (5, 6) and i[0] == i[1] and [i[1], *i[2:4]] == _layernorm((i[1], i[4], i[4]), attrs), i)
    return [i[1]]


@NORM_OPS.op("layernorm_backward_weight", may_reuse=((0, 4),), work=ELEMENTWISE)
def _layernorm_backward_weight(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dweight [C] (+ dw_in), from (dy, x, mean, rstd); the bias's gradient is ``sum_rows``."""
    require(len(i) in (4, 5) and i[0] == i[1] and i[2] == i[3] == TensorType(i[0].shape[:1]), i)
    return [TensorType(i[0].shape[1:])]
