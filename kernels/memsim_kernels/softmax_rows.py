"""The two passes of a softmax over a row that lies in cache, in LLVM's portable vectors of 16 float32."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from memsim_kernels.exponential import emit_exp, exp
from memsim_kernels.jit import F32
from memsim_kernels.vectors import FLOATS, LANES, data_of, spread, vector_at

_INTEGER = ir.IntType(64)


def _emit_pass(builder: Any, data: Any, count: Any, first: Any, emit: Any) -> Any:
    """Emit a loop over ``count`` vectors that carries one vector, and return its last value."""
    carried = cgutils.alloca_once_value(builder, first)
    with cgutils.for_range(builder, count) as loop:
        place = vector_at(builder, data, builder.mul(loop.index, _INTEGER(LANES)))
        builder.store(emit(place, builder.load(carried)), carried)
    return builder.load(carried)


def _fold(builder: Any, vector: Any, combine: Any) -> Any:
    """Combine the lanes in halves: always in the same order."""
    width = LANES
    while width > 1:
        width //= 2
        order = [lane + width if lane < width else lane for lane in range(LANES)]
        other = builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), LANES), order))
        vector = combine(vector, other)
    return builder.extract_element(vector, ir.IntType(32)(0))


if config.DISABLE_JIT:

    def largest_of(row: F32, count: int) -> Any:
        """Return the largest of 16 ``count`` elements; NaN does not count."""
        return np.fmax.reduce(row[: count * LANES], initial=np.float32(-np.inf))

    def sum_of_exponentials(row: F32, count: int, offset: Any) -> Any:
        """Replace 16 ``count`` elements by exp(element - offset) and return their sum."""
        row[: count * LANES] = exp(row[: count * LANES] - offset)
        return row[: count * LANES].sum(dtype=np.float32)

else:

    @intrinsic  # type: ignore[untyped-decorator]
    def largest_of(typing_context: Any, row: Any, count: Any) -> Any:
        """Return the largest of 16 ``count`` elements; NaN does not count."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = data_of(context, builder, signature, arguments, 0)

            def larger(a: Any, b: Any) -> Any:
                return builder.select(builder.fcmp_ordered(">", a, b), a, b)

            lowest = ir.Constant(FLOATS, [float("-inf")] * LANES)
            vector = _emit_pass(
                builder, data, arguments[1], lowest, lambda place, top: larger(builder.load(place, align=4), top)
            )
            return _fold(builder, vector, larger)

        return types.float32(row, types.int64), codegen

    @intrinsic  # type: ignore[untyped-decorator]
    def sum_of_exponentials(typing_context: Any, row: Any, count: Any, offset: Any) -> Any:
        """Replace 16 ``count`` elements by exp(element - offset) and return their sum."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = data_of(context, builder, signature, arguments, 0)
            offset = spread(builder, arguments[2])

            def replace(place: Any, total: Any) -> Any:
                value = emit_exp(builder, builder.fsub(builder.load(place, align=4), offset))
                builder.store(value, place, align=4)
                return builder.fadd(total, value)

            total = _emit_pass(builder, data, arguments[1], ir.Constant(FLOATS, [0.0] * LANES), replace)
            return _fold(builder, total, builder.fadd)

        return types.float32(row, types.int64, types.float32), codegen
