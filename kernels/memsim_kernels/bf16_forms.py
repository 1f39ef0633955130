"""The four forms in which a tile of 64 float32 rows takes part in a bf16 product, and the product of two forms.

x is [64, D], D a multiple of 32, of which ``rows`` are there and the rest is zero. As the left factor it is in blocks
[.., steps, 16, 32] of 16 rows and 32 of the reduction, as the right factor in panels [.., steps, 2, 16, 16, 2] (see
``bf16_unpack``). Either way a KiB holds 16 x 16 dwords, and the form of the transposed matrix on the one side is that
of the matrix on the other side, each KiB transposed. Addresses are int64, distances bytes; nothing checks bounds.
"""

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from memsim_kernels import cpu
from memsim_kernels.bf16_block import routine, tiles_1_forward, tiles_2_forward, vectors_forward
from memsim_kernels.bf16_rows import pack_rows
from memsim_kernels.bf16_type import FLOATS, I32, I64, LANES, WORDS, add, constants, load, round_to_bf16, store
from memsim_kernels.jit import helper
from memsim_kernels.vectors import transposition_stage

STEPS = 2  # of 32 rows in a tile
KIB = 1024


@intrinsic  # type: ignore[untyped-decorator]
def _pair_line(typing_context: Any, target: Any, first: Any, second: Any) -> Any:
    """Write 16 pairs of bf16 from 16 float32 of one row and 16 of the next."""

    def emit(builder: Any, target: Any, first: Any, second: Any) -> None:
        both = builder.bitcast(
            round_to_bf16(builder, load(builder, first, FLOATS, 4), load(builder, second, FLOATS, 4)), WORDS
        )
        order = [lane + LANES * odd for lane in range(LANES) for odd in (0, 1)]
        store(builder, builder.shuffle_vector(both, both, constants(ir.VectorType(I32, 2 * LANES), order)), target, 64)

    return routine(3, emit, cpu.HAS_AVX512_BF16)


@intrinsic  # type: ignore[untyped-decorator]
def _transpose_kib(typing_context: Any, target: Any, source: Any) -> Any:
    """Transpose 16 x 16 dwords."""

    def emit(builder: Any, target: Any, source: Any) -> None:
        lines = [load(builder, add(builder, source, I64(64 * i)), FLOATS, 64) for i in range(LANES)]
        for step in (1, 2, 4, 8):
            lines = transposition_stage(builder, lines, step)
        for i, line in enumerate(lines):
            store(builder, line, add(builder, target, I64(64 * i)), 64)

    return routine(2, emit, cpu.HAS_AVX512_BF16)


@helper
def left(target: int, x: int, x_row: int, rows: int, depth: int) -> None:
    """Write x as a left factor: 4 blocks, ``depth`` / 32 steps."""
    for block in range(4):
        pack_rows(target + block * depth * 32, x + block * 16 * x_row, x_row, rows - block * 16, depth)


@helper
def right(target: int, x: int, x_row: int, rows: int, columns: int, zeros: int) -> None:
    """Write x as a right factor: ``columns`` / 32 panels, STEPS steps. ``zeros`` is a line of zeros."""
    for column in range(0, columns, 16):
        place = target + column // 32 * STEPS * 2 * KIB + column // 16 % 2 * KIB
        for pair in range(16 * STEPS):
            row = x + 2 * pair * x_row + column * 4
            first, second = row if 2 * pair < rows else zeros, row + x_row if 2 * pair + 1 < rows else zeros
            _pair_line(place + pair // 16 * 2 * KIB + pair % 16 * 64, first, second)


@helper
def left_to_right(target: int, source: int, depth: int) -> None:
    """Write the transpose of x as a right factor, 2 panels, from x as a left factor."""
    steps = depth // 32
    for block in range(4):
        for step in range(steps):
            place = target + ((block // 2 * steps + step) * 2 + block % 2) * KIB
            _transpose_kib(place, source + (block * steps + step) * KIB)


@helper
def right_to_left(target: int, source: int, columns: int) -> None:
    """Write the transpose of x as a left factor, ``columns`` / 16 blocks, from x as a right factor."""
    for block in range(columns // 16):
        for step in range(STEPS):
            place = source + ((block // 2 * STEPS + step) * 2 + block % 2) * KIB
            _transpose_kib(target + (block * STEPS + step) * KIB, place)


@helper
def multiply_forms(
    c: int, c_row: int, start: int, start_row: int, a: int, b: int, blocks: int, panels: int, steps: int, job: int,
    amx: bool,
) -> None:  # fmt: skip
    """Compute C [16 blocks, 32 panels] = start + A B in float32. A ``start_row`` of 0 begins at a line of zeros.

    ``job`` is an empty one: there is nothing to unpack.
    """
    across = 128 if start_row else 0
    for panel in range(panels):
        columns = b + panel * steps * 2 * KIB
        for i in range(0, blocks, 2):
            end, rows = c + i * 16 * c_row + panel * 128, a + i * steps * KIB
            first = start + i * 16 * start_row + panel * across
            pair = i + 1 < blocks
            if amx and pair:
                tiles_2_forward(
                    first, start_row, 64, 16 * start_row, end, c_row, 64, 16 * c_row,
                    rows, steps * KIB, columns, steps, job, 0,
                )  # fmt: skip
            elif amx:
                tiles_1_forward(first, start_row, 64, 0, end, c_row, 64, 0, rows, 0, columns, steps, job, 0)
            else:
                for half in range(4 if pair else 2):
                    vectors_forward(
                        first + half * 8 * start_row, start_row, 64, end + half * 8 * c_row, c_row, 64,
                        rows + half // 2 * steps * KIB + half % 2 * 512, columns, steps, job, 0,
                    )  # fmt: skip
