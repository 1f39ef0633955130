"""Ops of matrices that are trained as a whole: in bf16, in tiles of rows [N', K]; see ``models.tiles``.

``signs`` are those of lanes, as of ``perturb``; all that have noise have that of one direction.
"""

from collections.abc import Sequence

from memsim.ir.op import Attrs, Effect, OpTable, integer, require
from memsim.ir.program import TensorType
from memsim.ir.work import ELEMENTWISE, STORAGE, Kind, OpWork

TILE_OPS = OpTable()


@TILE_OPS.op("unpack_bf16", effect=Effect.UNPACKS, work=ELEMENTWISE)
def _unpack_bf16(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """W f32 [N', K] = w + s z for each lane, from (tile bf16 [N', K], [seed u32 [2]]).

    Every ``unit_rows`` rows are a unit of noise; ``noise`` is the number of the first.
    """
    require(i[0].dtype == "bf16" and list(i[1:]) in ([], [TensorType((2,), "u32")]), i)
    return [TensorType(i[0].shape)] * len(str(attrs["signs"]).split(","))


@TILE_OPS.op("embedding_bf16", work=ELEMENTWISE)
def _embedding_bf16(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """X f32 [T, K] = ``scale`` times (w + s z) for each lane, from (ids [T], their rows bf16 [T, K], [seed])."""
    require(i[0].dtype == "u32" and i[0].shape[0] == i[1].shape[0], i)
    return _unpack_bf16(i[1:], attrs)


@TILE_OPS.op(
    "linear_rows",
    work=OpWork(
        Kind.DENSE,
        lambda i, a: 2 * i[0].shape[0] * i[1].size,
        moves=lambda i, o: i[0].n_bytes + i[1].n_bytes + i[0].shape[0] * i[1].shape[0] * 4,
    ),
)
def _linear_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Columns from ``start`` on of y [T, ``n_rows``] = x w^T (+ bias), from (x [T, K], w [N', K], [y], [bias [N]]).

    The first tile begins y, every other one needs it. A workspace [T, N'] follows, unless the tile is the matrix.
    """
    (n_tokens, columns), (rows, w_columns) = i[0].shape, i[1].shape
    start, n_rows = integer(attrs, "start"), integer(attrs, "n_rows")
    y = TensorType((n_tokens, n_rows))
    rest = [*([y] if start else []), *([TensorType((n_rows,))] if attrs["bias"] else [])]
    require(columns == w_columns and start + rows <= n_rows and list(i[2:]) == rest, i)
    return [y, *([TensorType((n_tokens, rows))] if rows < n_rows else [])]


@TILE_OPS.op("cross_entropy_rows", work=OpWork(Kind.DENSE, lambda i, a: 2 * i[0].shape[0] * i[1].size))
def _cross_entropy_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """What is known of the losses after the vocabulary's rows ``start`` to ``start + N'``, and logits [T, N'].

    From (x [T, K], w [N', K], labels [T], [the same of the rows before]): f64 [4, T] with the largest logit, the sum of
    exponentials relative to it, the label's logit, and the row of the largest.
    """
    (n_tokens, columns), (rows, w_columns) = i[0].shape, i[1].shape
    known = TensorType((4, n_tokens), "f64")
    rest = [known] if integer(attrs, "start") else []
    require(columns == w_columns and i[2] == TensorType((n_tokens,), "u32") and list(i[3:]) == rest, i)
    return [known, TensorType((n_tokens, rows))]


@TILE_OPS.op("cross_entropy_stats", work=STORAGE)
def _cross_entropy_stats(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Stats f64 [3 lanes] as of ``cross_entropy``, from (labels [T], what ``cross_entropy_rows`` knows of each)."""
    require(set(i[1:]) == {TensorType((4, *i[0].shape), "f64")}, i)
    return [TensorType((3 * len(i[1:]),), "f64")]


@TILE_OPS.op("zo_update_bf16", work=ELEMENTWISE)
def _zo_update_bf16(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The new tile, from (seed, rho, tile bf16): w - lr g in f32, rounded to bf16 at random, without bias."""
    require(i[0] == TensorType((2,), "u32") and i[1].dtype == "f64" and i[2].dtype == "bf16", i)
    return [i[2]]
