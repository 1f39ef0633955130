"""Rows taken, placed, repeated and joined: the operands of tiles, lanes and prefixes."""

from collections.abc import Sequence

from memsim.ir.gradients import Backward
from memsim.ir.op import Attrs, OpTable, integer, lanes_of, require
from memsim.ir.program import Node, TensorType
from memsim.ir.work import ELEMENTWISE, Kind, OpWork

ROW_OPS = OpTable()


def _take_rows_gradient(b: Backward, node: Node) -> None:
    (x,) = node.inputs
    b.contribute(node, "place_rows", [b.grad(node.outputs[0])], x, start=node.attrs["start"], n_rows=b.n_rows(x))


# What is there is read too where rows are added to it.
@ROW_OPS.op(
    "take_rows",
    may_reuse=((0, 1),),
    gradient=_take_rows_gradient,
    sees_sequence=True,
    work=OpWork(Kind.ELEMENTWISE, moves=lambda i, o: (1 + len(i)) * o[0].n_bytes),
)
def _take_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """A copy of rows ``start`` to ``start + count`` of x [T, C], or of each of its lanes (+ y_in), from (x, [y_in])."""
    start, count, lanes = integer(attrs, "start"), integer(attrs, "count"), lanes_of(attrs)
    require(len(i) in (1, 2) and 0 <= start < start + count <= i[0].shape[0] // lanes, i)
    return [TensorType((lanes * count, i[0].shape[1]))]


@ROW_OPS.op("put_rows", may_reuse=((0, 0),), work=OpWork(Kind.ELEMENTWISE, moves=lambda i, o: 2 * i[1].n_bytes))
def _put_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rows from ``start`` on replaced, of x or of each of its lanes, from (x [T, C], rows [count, C])."""
    start, lanes = integer(attrs, "start"), lanes_of(attrs)
    require(i[0].shape[1] == i[1].shape[1] and 0 <= start <= (i[0].shape[0] - i[1].shape[0]) // lanes, i)
    return [i[0]]


def _place_rows_gradient(b: Backward, node: Node) -> None:
    (x,) = node.inputs
    b.contribute(node, "take_rows", [b.grad(node.outputs[0])], x, start=node.attrs["start"], count=b.n_rows(x))


@ROW_OPS.op("place_rows", gradient=_place_rows_gradient, work=ELEMENTWISE)
def _place_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [n_rows, C]: the rows of x from row ``start`` on, zeros elsewhere."""
    start, n_rows = integer(attrs, "start"), integer(attrs, "n_rows")
    require(len(i) == 1 and 0 <= start <= n_rows - i[0].shape[0], i)
    return [TensorType((n_rows, i[0].shape[1]))]


@ROW_OPS.op("repeat_rows", work=ELEMENTWISE)
def _repeat_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [lanes T, C]: x [T, C] once for each lane, one copy below the other."""
    return [TensorType((lanes_of(attrs) * i[0].shape[0], i[0].shape[1]))]


def _concat_rows_gradient(b: Backward, node: Node) -> None:
    dy, start = b.grad(node.outputs[0]), 0
    for name in node.inputs:
        count = b.n_rows(name)
        b.contribute(node, "take_rows", [dy], name, start=start, count=count)
        start += count


@ROW_OPS.op("concat_rows", gradient=_concat_rows_gradient, work=ELEMENTWISE)
def _concat_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] of all inputs [T_i, C], one below the other."""
    require(len({kind.shape[1] for kind in i}) == 1, i)
    return [TensorType((sum(kind.shape[0] for kind in i), i[0].shape[1]))]


@ROW_OPS.op(
    "take_labelled",
    work=OpWork(Kind.ELEMENTWISE, moves=lambda i, o: i[1].n_bytes + 2 * o[0].n_bytes + o[1].n_bytes),
)
def _take_labelled(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The row [1, C] of x [T, C] that has a label, and the label u32 [1], from (x, labels [T])."""
    require(len(i) == 2 and i[1] == TensorType(i[0].shape[:1], "u32"), i)
    return [TensorType((1, i[0].shape[1])), TensorType((1,), "u32")]
