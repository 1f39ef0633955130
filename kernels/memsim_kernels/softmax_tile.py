"""What attention does to a tile of scores that lies in cache, in LLVM's portable vectors of 16 float32.

A tile is [rows, 64], flat: a row is a key, a column (a lane of one of four vectors) a query. Whatever is known of the
queries, such as the largest score so far, is an array of 64. Exponents are to the base 2: ``factor`` includes log2 e.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from memsim_kernels.exponential import emit_exp2, exp2
from memsim_kernels.jit import F32
from memsim_kernels.vectors import FLOATS, LANES, data_of, spread, vector_at

TILE = 64
_VECTORS = range(0, TILE, LANES)
_INTEGER = ir.IntType(64)
_INDICES = ir.VectorType(ir.IntType(32), LANES)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _places(builder: Any, data: Any, row: Any) -> list[Any]:
    """Return the addresses of the four vectors of a row."""
    at = builder.mul(row, row.type(TILE))
    return [vector_at(builder, data, builder.add(at, at.type(v))) for v in _VECTORS]


def _load(builder: Any, places: list[Any]) -> list[Any]:
    return [builder.load(place, align=4) for place in places]


def _store(builder: Any, values: list[Any], places: list[Any]) -> None:
    for value, place in zip(values, places, strict=True):
        builder.store(value, place, align=4)


def _emit_rows(builder: Any, rows: Any, first: list[Any], emit: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """Emit a loop over rows that carries vectors, and return their last values."""
    carried = [cgutils.alloca_once_value(builder, value) for value in first]
    with cgutils.for_range(builder, rows) as loop:
        for slot, value in zip(carried, emit(loop.index, [builder.load(slot) for slot in carried]), strict=True):
            builder.store(value, slot)
    return [builder.load(slot) for slot in carried]


def _fma(builder: Any) -> Any:
    return cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{LANES}f32"
    )


if config.DISABLE_JIT:

    def hide_tile(scores: F32, rows: int, low: int, high: int) -> None:
        """Set the scores of row j to minus infinity but for those of queries j + low ... j + high - 1."""
        for j in range(rows):
            line = scores[j * TILE : (j + 1) * TILE]
            line[: max(0, j + low)] = -np.inf
            line[max(0, j + high) :] = -np.inf

    def softmax_tile(scores: F32, rows: int, factor: Any, largest: F32, total: F32, shrink: F32) -> None:
        """Turn scores s into 2^(factor s - largest), with running maxima and sums; ``shrink`` rescales the past."""
        tile = scores[: rows * TILE].reshape(rows, TILE)
        new = np.fmax(np.fmax.reduce(tile, axis=0) * factor, largest[:TILE])
        shrink[:TILE] = exp2(largest[:TILE] - new)
        tile[:] = exp2(tile * factor - new)
        largest[:TILE] = new
        total[:TILE] = total[:TILE] * shrink[:TILE] + tile.sum(axis=0)

    def gradient_tile(scores: F32, dscores: F32, rows: int, factor: Any, shift: F32, mean: F32) -> None:
        """Turn scores s into p = 2^(factor s - shift), and the gradients dp of p into p (dp - mean)."""
        tile, grads = (x[: rows * TILE].reshape(rows, TILE) for x in (scores, dscores))
        tile[:] = exp2(tile * factor - shift[:TILE])
        grads[:] = tile * (grads - mean[:TILE])

    def scale_columns(x: F32, rows: int, factors: F32) -> None:
        """Multiply each column of ``x`` by its factor."""
        x[: rows * TILE].reshape(rows, TILE)[:] *= factors[:TILE]

    def dot_columns(out: F32, x: F32, y: F32, rows: int) -> None:
        """Write the dot product of each column of ``x`` with that of ``y``."""
        out[:TILE] = (x[: rows * TILE] * y[: rows * TILE]).reshape(rows, TILE).sum(axis=0)

else:

    @intrinsic  # type: ignore[untyped-decorator]
    def hide_tile(typing_context: Any, scores: Any, rows: Any, low: Any, high: Any) -> Any:
        """Set the scores of row j to minus infinity but for those of queries j + low ... j + high - 1."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = data_of(context, builder, signature, arguments, 0)
            _, rows, low, high = arguments
            hidden = ir.Constant(FLOATS, [float("-inf")] * LANES)

            def row(index: Any, _: list[Any]) -> list[Any]:
                begin, end = (
                    spread(builder, builder.trunc(builder.add(index, limit), ir.IntType(32)), _INDICES)
                    for limit in (low, high)
                )
                for v, place in zip(_VECTORS, _places(builder, data, index), strict=True):
                    lanes = ir.Constant(_INDICES, list(range(v, v + LANES)))
                    seen = builder.and_(builder.icmp_signed(">=", lanes, begin), builder.icmp_signed("<", lanes, end))
                    builder.store(builder.select(seen, builder.load(place, align=4), hidden), place, align=4)
                return []

            _emit_rows(builder, rows, [], row)
            return context.get_dummy_value()

        return types.void(scores, types.int64, types.int64, types.int64), codegen

    @intrinsic  # type: ignore[untyped-decorator]
    def softmax_tile(
        typing_context: Any, scores: Any, rows: Any, factor: Any, largest: Any, total: Any, shrink: Any
    ) -> Any:
        """Turn scores s into 2^(factor s - largest), with running maxima and sums; ``shrink`` rescales the past."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data, tops, sums, past = (data_of(context, builder, signature, arguments, i) for i in (0, 3, 4, 5))
            rows, factor, zero = arguments[1], spread(builder, arguments[2]), _INTEGER(0)
            tops, sums, past = (_places(builder, x, zero) for x in (tops, sums, past))
            old, fma = _load(builder, tops), _fma(builder)

            def highest(row: Any, top: list[Any]) -> list[Any]:
                line = _load(builder, _places(builder, data, row))
                return [_larger(builder, a, b) for a, b in zip(line, top, strict=True)]

            lowest = ir.Constant(FLOATS, [float("-inf")] * LANES)
            tile_tops = _emit_rows(builder, rows, [lowest] * len(old), highest)
            new = [_larger(builder, builder.fmul(a, factor), b) for a, b in zip(tile_tops, old, strict=True)]
            shrinks = [emit_exp2(builder, builder.fsub(a, b)) for a, b in zip(old, new, strict=True)]
            offsets = [builder.fneg(value) for value in new]

            def replace(row: Any, sums: list[Any]) -> list[Any]:
                places = _places(builder, data, row)
                line = [
                    emit_exp2(builder, builder.call(fma, [score, factor, offset]))
                    for score, offset in zip(_load(builder, places), offsets, strict=True)
                ]
                _store(builder, line, places)
                return [builder.fadd(a, b) for a, b in zip(sums, line, strict=True)]

            before = [builder.fmul(a, b) for a, b in zip(_load(builder, sums), shrinks, strict=True)]
            _store(builder, _emit_rows(builder, rows, before, replace), sums)
            _store(builder, new, tops)
            _store(builder, shrinks, past)
            return context.get_dummy_value()

        return types.void(scores, types.int64, types.float32, largest, total, shrink), codegen

    @intrinsic  # type: ignore[untyped-decorator]
    def gradient_tile(
        typing_context: Any, scores: Any, dscores: Any, rows: Any, factor: Any, shift: Any, mean: Any
    ) -> Any:
        """Turn scores s into p = 2^(factor s - shift), and the gradients dp of p into p (dp - mean)."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data, grads, shift, mean = (data_of(context, builder, signature, arguments, i) for i in (0, 1, 4, 5))
            factor, fma = spread(builder, arguments[3]), _fma(builder)
            offsets = [builder.fneg(x) for x in _load(builder, _places(builder, shift, _INTEGER(0)))]
            means = _load(builder, _places(builder, mean, _INTEGER(0)))

            def row(index: Any, _: list[Any]) -> list[Any]:
                places, grad_places = _places(builder, data, index), _places(builder, grads, index)
                line = [
                    emit_exp2(builder, builder.call(fma, [score, factor, offset]))
                    for score, offset in zip(_load(builder, places), offsets, strict=True)
                ]
                slopes = [builder.fsub(a, b) for a, b in zip(_load(builder, grad_places), means, strict=True)]
                _store(builder, line, places)
                _store(builder, [builder.fmul(a, b) for a, b in zip(line, slopes, strict=True)], grad_places)
                return []

            _emit_rows(builder, arguments[2], [], row)
            return context.get_dummy_value()

        return types.void(scores, dscores, types.int64, types.float32, shift, mean), codegen

    @intrinsic  # type: ignore[untyped-decorator]
    def scale_columns(typing_context: Any, x: Any, rows: Any, factors: Any) -> Any:
        """Multiply each column of ``x`` by its factor."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data, factors = (data_of(context, builder, signature, arguments, i) for i in (0, 2))
            by = _load(builder, _places(builder, factors, _INTEGER(0)))

            def row(index: Any, _: list[Any]) -> list[Any]:
                places = _places(builder, data, index)
                line = _load(builder, places)
                _store(builder, [builder.fmul(a, b) for a, b in zip(line, by, strict=True)], places)
                return []

            _emit_rows(builder, arguments[1], [], row)
            return context.get_dummy_value()

        return types.void(x, types.int64, factors), codegen

    @intrinsic  # type: ignore[untyped-decorator]
    def dot_columns(typing_context: Any, out: Any, x: Any, y: Any, rows: Any) -> Any:
        """Write the dot product of each column of ``x`` with that of ``y``."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, x, y = (data_of(context, builder, signature, arguments, i) for i in (0, 1, 2))
            fma = _fma(builder)

            def row(index: Any, sums: list[Any]) -> list[Any]:
                lines = (_load(builder, _places(builder, data, index)) for data in (x, y))
                return [builder.call(fma, terms) for terms in zip(*lines, sums, strict=True)]

            sums = _emit_rows(builder, arguments[3], [ir.Constant(FLOATS, [0.0] * LANES)] * len(_VECTORS), row)
            _store(builder, sums, _places(builder, out, _INTEGER(0)))
            return context.get_dummy_value()

        return types.void(out, x, y, types.int64), codegen
