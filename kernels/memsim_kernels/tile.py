"""The product of two small matrices in cache: the one inner loop under every matrix product of this package.

Each element of the result is one chain of fused multiply-adds in ascending order of the reduction index, beginning
at the value that the element had before. Its bits therefore depend on nothing but its own row and column: not on
how many rows or columns there are, how they are cut into tiles, or which thread computes them.

The inner loop is written in LLVM's portable vectors of 16 float32 (one AVX-512 register, two AVX2, four NEON). It
keeps a block of the result in registers: per step of the reduction, one vector of b for each 16 columns, and one
element of a, spread over a vector, for each row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from memsim_kernels.jit import F32, helper

LANES = 16


def _vectors_per_row() -> int:
    """Return how many vectors wide the block is: 6 rows x 4 fill 24 of the 32 registers that AVX-512 has."""
    return 4 if binding.get_host_cpu_features().get("avx512f", False) else 1


VECTORS = _vectors_per_row()
BLOCK = VECTORS * LANES


def _block_in_python(rows: int, vectors: int) -> Callable[..., None]:
    """Return what ``_block_in_registers`` compiles, for runs with NUMBA_DISABLE_JIT=1."""
    width = vectors * LANES

    def block(
        c: F32, c_at: int, c_row: int, a: F32, a_at: int, a_row: int, a_k: int, b: F32, b_at: int, b_row: int, depth: int
    ) -> None:
        for i in range(rows):
            out = c[c_at + i * c_row : c_at + i * c_row + width]
            for k in range(depth):
                out += a[a_at + i * a_row + k * a_k] * b[b_at + k * b_row : b_at + k * b_row + width]

    return block


def _block_in_registers(rows: int, vectors: int) -> Any:
    """Return an intrinsic that adds the product of a [rows, depth] and b [depth, 16 vectors] to a block of c."""

    @intrinsic
    def block(
        typing_context: Any, c: Any, c_at: Any, c_row: Any, a: Any, a_at: Any, a_row: Any, a_k: Any,
        b: Any, b_at: Any, b_row: Any, depth: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            c_data, a_data, b_data = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 3, 7)
            )
            c_at, c_row, a_at, a_row, a_k, b_at, b_row, depth = (arguments[i] for i in (1, 2, 4, 5, 6, 8, 9, 10))
            with builder.if_then(builder.icmp_signed(">", depth, depth.type(0))):
                _emit_block(
                    builder,
                    _rows(builder, c_data, c_at, c_row, rows),
                    _rows(builder, a_data, a_at, a_row, rows),
                    a_k,
                    builder.gep(b_data, [b_at]),
                    b_row,
                    depth,
                    vectors,
                )
            return context.get_dummy_value()

        integer = types.int64
        return types.void(c, integer, integer, a, integer, integer, integer, b, integer, integer, integer), codegen

    return block


def _rows(builder: Any, data: Any, at: Any, step: Any, count: int) -> list[Any]:
    """Return the addresses of ``count`` rows that begin ``step`` elements apart."""
    return [builder.gep(data, [builder.add(at, builder.mul(step, step.type(i)))]) for i in range(count)]


def _emit_block(
    builder: Any, c_rows: list[Any], a_rows: list[Any], a_k: Any, b: Any, b_row: Any, depth: Any, vectors: int
) -> None:
    vector = ir.VectorType(ir.FloatType(), LANES)
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32"
    )

    def place(row: Any, v: int) -> Any:
        return builder.bitcast(builder.gep(row, [depth.type(v * LANES)]), vector.as_pointer())

    start = [[builder.load(place(row, v), align=4) for v in range(vectors)] for row in c_rows]
    before, loop = builder.block, builder.append_basic_block("reduction")
    builder.branch(loop)
    builder.position_at_end(loop)
    step, a_step, b_step = (builder.phi(depth.type) for _ in range(3))
    sums = [[builder.phi(vector) for _ in row] for row in start]
    line = builder.gep(b, [b_step])
    right = [builder.load(place(line, v), align=4) for v in range(vectors)]
    results = []
    for row, row_sums in zip(a_rows, sums, strict=True):
        spread = _spread(builder, builder.load(builder.gep(row, [a_step])), vector)
        results.append([builder.call(fma, [spread, v, total]) for v, total in zip(right, row_sums, strict=True)])
    for value, increment in ((step, depth.type(1)), (a_step, a_k), (b_step, b_row)):
        value.add_incoming(depth.type(0), before)
        value.add_incoming(builder.add(value, increment), loop)
    for i, row in enumerate(sums):
        for v, total in enumerate(row):
            total.add_incoming(start[i][v], before)
            total.add_incoming(results[i][v], loop)
    after = builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed("<", builder.add(step, depth.type(1)), depth), loop, after)
    builder.position_at_end(after)
    for row, values in zip(c_rows, results, strict=True):
        for v, value in enumerate(values):
            builder.store(value, place(row, v), align=4)


def _spread(builder: Any, value: Any, vector: Any) -> Any:
    """Return a vector whose every lane is ``value``."""
    index = ir.IntType(32)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, index(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))


def _blocks(vectors: int) -> tuple[Any, Any, Any]:
    """Return the blocks of 6, 4 and 1 rows. Six and four sum to every even number of rows above two."""
    make = _block_in_python if config.DISABLE_JIT else _block_in_registers
    return make(6, vectors), make(4, vectors), make(1, vectors)


_wide_6, _wide_4, _wide_1 = _blocks(VECTORS)
_narrow_6, _narrow_4, _narrow_1 = _blocks(1) if VECTORS > 1 else (_wide_6, _wide_4, _wide_1)


@helper
def multiply(
    c: F32, c_at: int, c_row: int, a: F32, a_at: int, a_row: int, a_k: int, b: F32, b_at: int, b_row: int,
    rows: int, depth: int, columns: int,
) -> None:  # fmt: skip
    """Add a b to c, where c is [rows, columns], a [rows, depth] and b [depth, columns].

    All three are flat arrays, and nothing checks bounds. c[i, j] is at ``c_at + i * c_row + j``, a[i, k] at
    ``a_at + i * a_row + k * a_k`` and b[k, j] at ``b_at + k * b_row + j``. ``columns`` is a multiple of LANES.
    """
    i = 0
    while i < rows:
        left = rows - i
        count = 4 if left == 8 or left == 9 else 6 if left >= 6 else 4 if left >= 4 else 1
        j = 0
        while j < columns:
            out, line, right = c_at + i * c_row + j, a_at + i * a_row, b_at + j
            if columns - j >= BLOCK:
                if count == 6:
                    _wide_6(c, out, c_row, a, line, a_row, a_k, b, right, b_row, depth)
                elif count == 4:
                    _wide_4(c, out, c_row, a, line, a_row, a_k, b, right, b_row, depth)
                else:
                    _wide_1(c, out, c_row, a, line, a_row, a_k, b, right, b_row, depth)
                j += BLOCK
            else:
                if count == 6:
                    _narrow_6(c, out, c_row, a, line, a_row, a_k, b, right, b_row, depth)
                elif count == 4:
                    _narrow_4(c, out, c_row, a, line, a_row, a_k, b, right, b_row, depth)
                else:
                    _narrow_1(c, out, c_row, a, line, a_row, a_k, b, right, b_row, depth)
                j += LANES
        i += count


if config.DISABLE_JIT:

    def _address(array: Any) -> int:
        return int(array.ctypes.data)

else:

    @intrinsic
    def _address(typing_context: Any, array: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            return builder.ptrtoint(data, context.get_value_type(types.int64))

        return types.int64(array), codegen


@helper
def aligned(size: int) -> Any:
    """Return a new float32 array of ``size`` elements that begins on a cache line."""
    block = np.empty(size + LANES, np.float32)
    skip = (-_address(block) // 4) % LANES
    return block[skip : skip + size]
