"""Rows taken, placed, repeated and joined: the operands of tiles, lanes and prefixes."""

from collections.abc import Sequence

from memsim.ir.op import Attrs, OpTable, integer, lanes_of, require
from memsim.ir.program import TensorType

ROW_OPS = OpTable()


@ROW_OPS.op("take_rows", may_reuse=((0, 1),))
def _take_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """A copy of rows ``start`` to ``start + count`` of x [T, C], or of each of its lanes (+ y_in), from (x, [y_in])."""
    start, count, lanes = integer(attrs, "start"), integer(attrs, "count"), lanes_of(attrs)
    require(len(i) in (1, 2) and 0 <= start < start + count <= i[0].shape[0] // lanes, i)
    return [TensorType((lanes * count, i[0].shape[1]))]


@ROW_OPS.op("put_rows", may_reuse=((0, 0),))
def _put_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rows from ``start`` on replaced, of x or of each of its lanes, from (x [T, C], rows [count, C])."""
    start, lanes = integer(attrs, "start"), lanes_of(attrs)
    require(i[0].shape[1] == i[1].shape[1] and 0 <= start <= (i[0].shape[0] - i[1].shape[0]) // lanes, i)
    return [i[0]]


@ROW_OPS.op("place_rows")
def _place_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [n_rows, C]: the rows of x from row ``start`` on, zeros elsewhere."""
    start, n_rows = integer(attrs, "start"), integer(attrs, "n_rows")
    require(len(i) == 1 and 0 <= start <= n_rows - i[0].shape[0], i)
    return [TensorType((n_rows, i[0].shape[1]))]


@ROW_OPS.op("repeat_rows")
def _repeat_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [lanes T, C]: x [T, C] once for each lane, one copy below the other."""
    return [TensorType((lanes_of(attrs) * i[0].shape[0], i[0].shape[1]))]


@ROW_OPS.op("concat_rows")
def _concat_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] of all inputs [T_i, C], one below the other."""
    require(len({kind.shape[1] for kind in i}) == 1, i)
    return [TensorType((sum(kind.shape[0] for kind in i), i[0].shape[1]))]


@ROW_OPS.op("take_labelled")
def _take_labelled(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The row [1, C] of x [T, C] that has a label, and the label u32 [1], from (x, labels [T])."""
    require(len(i) == 2 and i[1] == TensorType(i[0].shape[:1], "u32"), i)
    return [TensorType((1, i[0].shape[1])), TensorType((1,), "u32")]
