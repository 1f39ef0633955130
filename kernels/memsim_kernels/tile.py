"""The product of two small matrices in cache: the one inner loop under every matrix product of this package.

Each element of the result is one chain of fused multiply-adds in ascending order of the reduction index, beginning
at the value that the element had before. Its bits therefore depend on nothing but its own row and column: not on
how many rows or columns there are, how they are cut into tiles, or which thread computes them.

The inner loop is written in LLVM's portable vectors of 16 float32 (one AVX-512 register, two of AVX2, four of NEON).
It keeps a block of the result in registers: per step of the reduction it loads one vector of b for each 16 columns,
and one element of a, spread over a vector, for each row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from memsim_kernels.jit import F32, helper
from memsim_kernels.vectors import FLOATS, LANES, address_of, data_of, spread, vector_at

# Vectors side by side in a block: 6 rows x 4 vectors fill 24 of the 32 registers of AVX-512; elsewhere 6 x 1 fill
# 12 of the 16 of AVX2 and 24 of the 32 of NEON.
VECTORS = 4 if binding.get_host_cpu_features().get("avx512f", False) else 1
BLOCK = VECTORS * LANES


def _block_in_python(rows: int, vectors: int) -> Callable[..., None]:
    """Return what ``_block_in_registers`` compiles, for runs with NUMBA_DISABLE_JIT=1."""
    width = vectors * LANES

    def block(
        c: F32, c_at: int, c_row: int, start: F32, start_at: int, start_row: int,
        a: F32, a_at: int, a_row: int, a_k: int, b: F32, b_at: int, b_row: int, depth: int,
    ) -> None:  # fmt: skip
        for i in range(rows):
            out = start[start_at + i * start_row : start_at + i * start_row + width].copy()
            for k in range(depth):
                out += a[a_at + i * a_row + k * a_k] * b[b_at + k * b_row : b_at + k * b_row + width]
            c[c_at + i * c_row : c_at + i * c_row + width] = out

    return block


def _block_in_registers(rows: int, vectors: int) -> Any:
    """Return an intrinsic that computes one block of ``multiply``: a [rows, depth] times b [depth, 16 vectors]."""

    @intrinsic  # type: ignore[untyped-decorator]
    def block(
        typing_context: Any, c: Any, c_at: Any, c_row: Any, start: Any, start_at: Any, start_row: Any,
        a: Any, a_at: Any, a_row: Any, a_k: Any, b: Any, b_at: Any, b_row: Any, depth: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = {i: data_of(context, builder, signature, arguments, i) for i in (0, 3, 6, 10)}
            c_rows, start_rows, a_rows = (
                [_element(builder, data[i], arguments[i + 1], arguments[i + 2], row) for row in range(rows)]
                for i in (0, 3, 6)
            )
            b_data, a_k, (b_at, b_row, depth) = data[10], arguments[9], arguments[11:]
            places = [depth.type(v * LANES) for v in range(vectors)]
            first = [[builder.load(vector_at(builder, row, at), align=4) for at in places] for row in start_rows]
            sums = _emit_reduction(builder, first, a_rows, a_k, builder.gep(b_data, [b_at]), b_row, depth)
            for row, values in zip(c_rows, sums, strict=True):
                for at, value in zip(places, values, strict=True):
                    builder.store(value, vector_at(builder, row, at), align=4)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(c, i64, i64, start, i64, i64, a, i64, i64, i64, b, i64, i64, i64), codegen

    return block


def _element(builder: Any, data: Any, at: Any, step: Any, index: int) -> Any:
    """Return the address of element ``at + index * step``."""
    return builder.gep(data, [builder.add(at, builder.mul(step, step.type(index)))])


def _emit_reduction(
    builder: Any, first: list[list[Any]], a_rows: list[Any], a_k: Any, b: Any, b_row: Any, depth: Any
) -> list[list[Any]]:
    """Emit the loop over the reduction, at least one step; return the vectors of the block after its last step."""
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{LANES}f32")
    before, loop, after = builder.block, builder.append_basic_block("step"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    step, a_step, b_step = (builder.phi(depth.type) for _ in range(3))
    sums = [[builder.phi(FLOATS) for _ in row] for row in first]
    line = builder.gep(b, [b_step])
    right = [builder.load(vector_at(builder, line, depth.type(v * LANES)), align=4) for v in range(len(first[0]))]
    results = []
    for row, totals in zip(a_rows, sums, strict=True):
        left = spread(builder, builder.load(builder.gep(row, [a_step])))
        results.append([builder.call(fma, [left, v, total]) for v, total in zip(right, totals, strict=True)])
    for counter, increment in ((step, depth.type(1)), (a_step, a_k), (b_step, b_row)):
        counter.add_incoming(depth.type(0), before)
        counter.add_incoming(builder.add(counter, increment), loop)
    for totals, starts, values in zip(sums, first, results, strict=True):
        for total, value_before, value in zip(totals, starts, values, strict=True):
            total.add_incoming(value_before, before)
            total.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", builder.add(step, depth.type(1)), depth), loop, after)
    builder.position_at_end(after)
    return results


_block = _block_in_python if config.DISABLE_JIT else _block_in_registers
# Every number of rows above 5 is a sum of sixes, fours and at most one 1.
_wide_6, _wide_4, _wide_1 = _block(6, VECTORS), _block(4, VECTORS), _block(1, VECTORS)
_narrow_6, _narrow_4, _narrow_1 = _block(6, 1), _block(4, 1), _block(1, 1)


@helper
def multiply(
    c: F32, c_at: int, c_row: int, start: F32, start_at: int, start_row: int,
    a: F32, a_at: int, a_row: int, a_k: int, b: F32, b_at: int, b_row: int,
    rows: int, depth: int, columns: int,
) -> None:  # fmt: skip
    """Compute c = start + a b, where c and start are [rows, columns], a [rows, depth] and b [depth, columns].

    All four are flat arrays, and nothing checks bounds. c[i, j] is at ``c_at + i * c_row + j``, start and b likewise,
    a[i, k] at ``a_at + i * a_row + k * a_k``. A ``start_row`` of 0 begins every row at the same values. c may be
    start itself. ``columns`` is a multiple of LANES, ``depth`` at least 1.
    """
    i = 0
    while i < rows:
        left = rows - i
        count = 4 if left in (4, 5, 8, 9) else 6 if left > 5 else 1
        line = a_at + i * a_row
        j = 0
        while j < columns:
            out, first, right = c_at + i * c_row + j, start_at + i * start_row + j, b_at + j
            wide = columns - j >= BLOCK
            if wide and count == 6:
                _wide_6(c, out, c_row, start, first, start_row, a, line, a_row, a_k, b, right, b_row, depth)
            elif wide and count == 4:
                _wide_4(c, out, c_row, start, first, start_row, a, line, a_row, a_k, b, right, b_row, depth)
            elif wide:
                _wide_1(c, out, c_row, start, first, start_row, a, line, a_row, a_k, b, right, b_row, depth)
            elif count == 6:
                _narrow_6(c, out, c_row, start, first, start_row, a, line, a_row, a_k, b, right, b_row, depth)
            elif count == 4:
                _narrow_4(c, out, c_row, start, first, start_row, a, line, a_row, a_k, b, right, b_row, depth)
            else:
                _narrow_1(c, out, c_row, start, first, start_row, a, line, a_row, a_k, b, right, b_row, depth)
            j += BLOCK if wide else LANES
        i += count


@helper
def aligned(size: int) -> Any:
    """Return a new float32 array of ``size`` elements that begins on a cache line."""
    block = np.empty(size + LANES, np.float32)
    skip = (-address_of(block) // 4) % LANES
    return block[skip : skip + size]
