"""Moves that loops over single elements do slowly, in LLVM's portable vectors of 16 lanes.

All arrays are flat; ``<array>_at`` is the first element, ``<array>_row`` the distance between rows, in elements.
Nothing checks bounds.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from memsim_kernels.jit import F32

LANES = 16
_INDEX = ir.IntType(32)
FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTEGERS = ir.VectorType(_INDEX, LANES)
HALVES = ir.VectorType(ir.HalfType(), LANES)


def spread(builder: Any, value: Any, vector: Any = FLOATS) -> Any:
    """Return a vector whose every lane is ``value``."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _INDEX(0))
    return builder.shuffle_vector(first, first, ir.Constant(INTEGERS, [0] * LANES))


def data_of(context: Any, builder: Any, signature: Any, arguments: Any, index: int) -> Any:
    """Return the address of the first element of an array argument."""
    return context.make_array(signature.args[index])(context, builder, arguments[index]).data


def vector_at(builder: Any, data: Any, at: Any, vector: Any = FLOATS) -> Any:
    """Return the address of the vector that begins at element ``at``."""
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


def row_at(builder: Any, at: Any, row: Any, index: int) -> Any:
    """Return the element where row ``index`` begins."""
    return builder.add(at, builder.mul(row, row.type(index)))


def transposition_stage(builder: Any, rows: list[Any], step: int) -> list[Any]:
    """Exchange, between rows i and i + step, the halves of every square of 2 step x 2 step elements."""
    low = [lane if lane & step == 0 else lane - step + LANES for lane in range(LANES)]
    high = [lane + step if lane & step == 0 else lane + LANES for lane in range(LANES)]
    result = list(rows)
    for i in range(LANES):
        if i & step == 0:
            pair = rows[i], rows[i + step]
            result[i] = builder.shuffle_vector(*pair, ir.Constant(INTEGERS, low))
            result[i + step] = builder.shuffle_vector(*pair, ir.Constant(INTEGERS, high))
    return result


if config.DISABLE_JIT:

    def address_of(array: Any) -> int:
        """Return the address of the first element of an array."""
        return int(array.ctypes.data)

    def half_to_float(bits: Any) -> Any:
        """Return the float32 value of a float16, a type that Numba lacks, from its bits (uint16)."""
        return np.float32(np.uint16(bits).view(np.float16))

    def move_16(out: F32, out_at: int, x: F32, x_at: int, scale: Any) -> None:
        """Write scale * 16 elements of ``x`` to ``out``."""
        out[out_at : out_at + LANES] = x[x_at : x_at + LANES] * scale

    def transpose_16(out: F32, out_at: int, out_row: int, x: F32, x_at: int, x_row: int, scale: Any) -> None:
        """Write scale * the transpose of 16 x 16 elements of ``x`` to ``out``."""
        for lane in range(LANES):
            line = x[x_at + lane * x_row : x_at + lane * x_row + LANES]
            out[out_at + lane : out_at + lane + (LANES - 1) * out_row + 1 : out_row] = line * scale

else:

    @intrinsic  # type: ignore[untyped-decorator]
    def address_of(typing_context: Any, array: Any) -> Any:
        """Return the address of the first element of an array."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.ptrtoint(data_of(context, builder, signature, arguments, 0), ir.IntType(64))

        return types.int64(array), codegen

    @intrinsic  # type: ignore[untyped-decorator]
    def half_to_float(typing_context: Any, bits: Any) -> Any:
        """Return the float32 value of a float16, a type that Numba lacks, from its bits (uint16)."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

        return types.float32(types.uint16), codegen

    @intrinsic  # type: ignore[untyped-decorator]
    def move_16(typing_context: Any, out: Any, out_at: Any, x: Any, x_at: Any, scale: Any) -> Any:
        """Write scale * 16 elements of ``x`` to ``out``."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            to, source = (data_of(context, builder, signature, arguments, index) for index in (0, 2))
            _, out_at, _, x_at, scale = arguments
            line = builder.fmul(builder.load(vector_at(builder, source, x_at), align=4), spread(builder, scale))
            builder.store(line, vector_at(builder, to, out_at), align=4)
            return context.get_dummy_value()

        return types.void(out, types.int64, x, types.int64, types.float32), codegen

    @intrinsic  # type: ignore[untyped-decorator]
    def transpose_16(
        typing_context: Any, out: Any, out_at: Any, out_row: Any, x: Any, x_at: Any, x_row: Any, scale: Any
    ) -> Any:
        """Write scale * the transpose of 16 x 16 elements of ``x`` to ``out``."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            to, source = (data_of(context, builder, signature, arguments, index) for index in (0, 3))
            _, out_at, out_row, _, x_at, x_row, scale = arguments
            factor = spread(builder, scale)
            rows = []
            for i in range(LANES):
                line = builder.load(vector_at(builder, source, row_at(builder, x_at, x_row, i)), align=4)
                rows.append(builder.fmul(line, factor))
            for step in (1, 2, 4, 8):
                rows = transposition_stage(builder, rows, step)
            for i, line in enumerate(rows):
                builder.store(line, vector_at(builder, to, row_at(builder, out_at, out_row, i)), align=4)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(out, integer, integer, x, integer, integer, types.float32), codegen
