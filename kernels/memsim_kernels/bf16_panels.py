"""Panels of bf16 products: 32 columns of a packed or dense matrix, and their product with all row blocks.

Over 250 lines: what is unpacked into tiles and what multiplies them agree on every place.

While one panel is multiplied by the row blocks (see ``bf16_rows``), the next is unpacked. Each thread has room for
both, and for two row blocks of results at an edge.
"""

import numpy as np
from numpy.typing import NDArray

from memsim_kernels.bf16_block import (
    clear_line,
    copy_line,
    load_tile_shapes,
    round_column,
    round_pair,
    tiles_1_backward,
    tiles_1_forward,
    tiles_2_backward,
    tiles_2_forward,
    unpack_backward,
    unpack_forward,
    vectors_backward,
    vectors_forward,
)  # fmt: skip
from memsim_kernels.bf16_unpack import (
    HALF_BYTES,
    JOB_AHEAD,
    JOB_COLUMN,
    JOB_FORMAT,
    JOB_GROUP_SHIFT,
    JOB_OFFSETS,
    JOB_PANEL,
    JOB_Q,
    JOB_Q_STEP,
    JOB_SCALES,
    JOB_SCALES_GROUP,
    JOB_SCALES_STEP,
    JOB_UNIT,
    JOB_UNITS,
    JOB_WORDS,
    PAIR_BYTES,
)  # fmt: skip
from memsim_kernels.jit import F32, U16, U32, helper
from memsim_kernels.levels import AFFINE, SYMMETRIC_8, format_of
from memsim_kernels.panel import ONLY_UNPACKING, WITHOUT_UNPACKING
from memsim_kernels.vectors import address_of as address

I64 = NDArray[np.int64]

STEPS = 33  # 1,024 of the reduction and an adapter of rank 32. Deep panels write few sums: 2 % of the time, 15 % at 8
COLUMNS = 32

# Of one thread, in bytes: two panels, two row blocks of results at an edge, the shapes of tiles, a bias, a job.
STEP_BYTES = 2 * HALF_BYTES
PANEL_BYTES = STEPS * STEP_BYTES
BLOCK_BYTES = 2048
_EDGE = 2 * PANEL_BYTES
_SHAPES = _EDGE + 2 * BLOCK_BYTES
_BIAS = _SHAPES + 64
OWN_JOB = _BIAS + 128
THREAD_FLOATS = (OWN_JOB + JOB_WORDS * 8) // 4


@helper
def group_shift_of(group_size: int) -> int:
    """Return log2(group size / 8), of 32, 64 or 128 columns."""
    return 2 if group_size == 32 else 3 if group_size == 64 else 4


@helper
def start_job(
    job: I64, target: int, panel: int, at: int, steps: int, q: U32, scales: U16, group_shift: int, transposed: bool
) -> None:
    """Describe the unpacking of a panel: 32 columns of the result, ``steps`` of the reduction from ``at`` on."""
    n16, dwords_of_row = q.shape[0], q.shape[1]
    form = format_of(q, scales, 8 << group_shift)
    step_dwords = 8 if form == SYMMETRIC_8 else 4  # of a row, in a step of the reduction or a panel's columns
    group_bytes = n16 * 32 * (2 if form == AFFINE else 1)
    job[JOB_FORMAT] = form
    job[JOB_OFFSETS] = n16 * 32
    job[JOB_UNIT] = 0
    job[JOB_PANEL] = target
    job[JOB_GROUP_SHIFT] = group_shift
    if transposed:
        inside = panel * 2 + 1 < n16  # else the upper half repeats the lower one, and nobody reads its result
        job[JOB_Q] = address(q) + (panel * 2 * dwords_of_row + at * step_dwords) * 64
        job[JOB_Q_STEP] = dwords_of_row * 64 if inside else 0
        job[JOB_SCALES] = address(scales) + panel * 64
        job[JOB_SCALES_STEP] = 32 if inside else 0
        job[JOB_SCALES_GROUP] = group_bytes
        job[JOB_COLUMN] = at * 4
        job[JOB_UNITS] = steps * 8
        job[JOB_AHEAD] = 2 * dwords_of_row * 64
    else:
        job[JOB_Q] = address(q) + (at * 2 * dwords_of_row + panel * step_dwords) * 64
        job[JOB_Q_STEP] = dwords_of_row * 64
        job[JOB_SCALES] = address(scales) + ((panel * 4) >> group_shift) * group_bytes + at * 64
        job[JOB_UNITS] = min(steps * 2, n16 - at * 2) * 8
        job[JOB_AHEAD] = step_dwords * 64
        if at * 2 + steps * 2 > n16:
            for i in range(16):
                clear_line(target + (steps - 1) * 2048 + 512 + i // 8 * 1024 + i % 8 * 64)


@helper
def _finish_job(job: int, transposed: bool) -> None:
    if transposed:
        unpack_forward(job)
    else:
        unpack_backward(job)


@helper
def prepare_tiles(own: F32) -> None:
    """Make all tile registers of this thread 16 rows of 64 bytes."""
    shapes = own[_SHAPES // 4 : _SHAPES // 4 + 16].view(np.uint8)
    shapes[:] = 0
    shapes[0] = 1
    for i in range(8):
        shapes[16 + 2 * i] = 64
        shapes[48 + i] = 16
    load_tile_shapes(address(own) + _SHAPES)


@helper
def round_step(target: int, matrix: F32, transposed: bool, k: int, column: int, factor: np.float32) -> None:
    """Write one step of a panel: 32 rows by 32 columns of a dense matrix, or of its transpose, zero where it ends."""
    row = matrix.shape[1] * 4
    if transposed:
        depth = max(0, matrix.shape[1] - k)
        for j in range(32):
            source = address(matrix) + (column + j) * row + k * 4
            place = target + j // 16 * HALF_BYTES + j % 16 * 4
            round_column(place, source, depth if column + j < matrix.shape[0] else 0, factor)
    else:
        columns = matrix.shape[1] - column
        for i in range(0, 32, 2):
            source = address(matrix) + (k + i) * row + column * 4
            first = columns if k + i < matrix.shape[0] else 0
            second = columns if k + i + 1 < matrix.shape[0] else 0
            place = target + i // 2 * PAIR_BYTES
            round_pair(place, source, source + row, first, second, factor)
            round_pair(place + HALF_BYTES, source + 64, source + row + 64, first - 16, second - 16, factor)


@helper
def multiply_blocks(
    start: int, s_row: int, s_half: int, s_block: int, end: int, e_row: int, e_half: int, e_block: int,
    a: int, a_block: int, b: int, count: int, steps: int, job: int, rate: int, transposed: bool, amx: bool,
) -> None:  # fmt: skip
    """Multiply one or two row blocks by a panel."""
    if amx and count == 2 and transposed:
        tiles_2_forward(start, s_row, s_half, s_block, end, e_row, e_half, e_block, a, a_block, b, steps, job, rate)
    elif amx and count == 2:
        tiles_2_backward(start, s_row, s_half, s_block, end, e_row, e_half, e_block, a, a_block, b, steps, job, rate)
    elif amx and transposed:
        tiles_1_forward(start, s_row, s_half, s_block, end, e_row, e_half, e_block, a, a_block, b, steps, job, rate)
    elif amx:
        tiles_1_backward(start, s_row, s_half, s_block, end, e_row, e_half, e_block, a, a_block, b, steps, job, rate)
    else:
        for i in range(2 * count):
            s = start + i // 2 * s_block + i % 2 * 8 * s_row
            e = end + i // 2 * e_block + i % 2 * 8 * e_row
            left = a + i // 2 * a_block + i % 2 * 512
            if transposed:
                vectors_forward(s, s_row, s_half, e, e_row, e_half, left, b, steps, job, rate)
            else:
                vectors_backward(s, s_row, s_half, e, e_row, e_half, left, b, steps, job, rate)


@helper
def _copy_block(
    target: int, t_row: int, t_half: int, source: int, s_row: int, s_half: int, rows: int, columns: int
) -> None:
    """Copy at most 16 rows of at most 32 columns."""
    for i in range(min(rows, 16)):
        for half in range(2):
            copy_line(target + i * t_row + half * t_half, source + i * s_row + half * s_half, columns - 16 * half)


@helper
def _multiply_panel(
    y: int, y_row: int, rows: int, columns: int, accumulate: bool, bias: int, edge: int, a: int, b: int, steps: int,
    job: I64, transposed: bool, amx: bool,
) -> None:  # fmt: skip
    """Multiply all row blocks by one panel. Blocks that reach beyond y are computed at ``edge`` and cut."""
    blocks = (rows + 15) // 16
    calls = (blocks + 1) // 2 if amx else 2 * blocks
    rate = (job[JOB_UNITS] + calls * steps - 1) // (calls * steps)
    for i in range(0, blocks, 2):
        count = min(2, blocks - i)
        inside = columns >= COLUMNS and (i + count) * 16 <= rows
        here = y + i * 16 * y_row
        end, e_row, e_half, e_block = (here, y_row, 64, 16 * y_row) if inside else (edge, 64, 1024, BLOCK_BYTES)
        start, s_row, s_half, s_block = (end, e_row, e_half, e_block) if accumulate else (bias, 0, 64, 0)
        if accumulate and not inside:
            for j in range(count):
                _copy_block(
                    edge + j * BLOCK_BYTES, 64, 1024, here + j * 16 * y_row, y_row, 64, rows - (i + j) * 16, columns
                )
        multiply_blocks(
            start, s_row, s_half, s_block, end, e_row, e_half, e_block,
            a + i * steps * 1024, steps * 1024, b, count, steps, address(job), rate, transposed, amx,
        )  # fmt: skip
        if not inside:
            for j in range(count):
                _copy_block(
                    here + j * 16 * y_row, y_row, 64, edge + j * BLOCK_BYTES, 64, 1024, rows - (i + j) * 16, columns
                )


@helper
def multiply_panels(
    y: int, y_row: int, rows: int, columns: int, begin: int, end: int, a: int, at: int, steps: int,
    q: U32, scales: U16, bias: F32, group_shift: int, transposed: bool, accumulate: bool, amx: bool, own: F32,
    leave_out: int, side: F32, side_at: int, side_steps: int,
) -> None:  # fmt: skip
    """Multiply the row blocks at ``a`` by panels begin ... end - 1 of the packed matrix and the dense one below it.

    Args:
        y: Address of the results of panel ``begin``.
        y_row: Bytes between its rows.
        rows: Rows of y.
        columns: Columns of y from there on.
        begin: First panel.
        end: One beyond the last panel.
        a: Address of the row blocks, ``steps`` deep.
        at: Where these steps begin within the packed matrix.
        steps: At most STEPS.
        q: Packed matrix.
        scales: Its scales.
        bias: Of the columns from 0 on, or empty; not used when accumulating.
        group_shift: log2(group size / 8).
        transposed: Multiply by W^T.
        accumulate: Add to y.
        amx: Use the tiles; ``prepare_tiles`` was called.
        own: This thread's THREAD_FLOATS of workspace, aligned to 64 bytes.
        leave_out: ALL, or what a benchmark wants.
        side: [N, R] when ``transposed``, else [R, K]: goes on where the packed matrix ends.
        side_at: Where these steps begin within it.
        side_steps: How many of ``steps``, the last ones, are of it.
    """
    packed_steps = steps - side_steps
    base = address(own)
    job = own[OWN_JOB // 4 : THREAD_FLOATS].view(np.int64)
    padded = own[_BIAS // 4 : _BIAS // 4 + COLUMNS]
    for panel in range(begin - 1, end):
        following = panel + 1
        job[JOB_UNIT] = job[JOB_UNITS] = 0
        target = base + following % 2 * PANEL_BYTES
        if following < end and packed_steps > 0 and leave_out != WITHOUT_UNPACKING:
            start_job(job, target, following, at, packed_steps, q, scales, group_shift, transposed)
        if following < end:
            for i in range(side_steps):
                round_step(
                    target + (packed_steps + i) * STEP_BYTES, side, transposed, (side_at + i) * 32,
                    following * COLUMNS, np.float32(1.0),
                )  # fmt: skip
        if panel < begin or leave_out == ONLY_UNPACKING:
            _finish_job(address(job), transposed)
            continue
        for j in range(COLUMNS):
            column = panel * COLUMNS + j
            padded[j] = bias[column] if column < bias.size else np.float32(0.0)
        done = (panel - begin) * COLUMNS
        _multiply_panel(
            y + done * 4, y_row, rows, columns - done, accumulate, base + _BIAS, base + _EDGE, a,
            base + panel % 2 * PANEL_BYTES, steps, job, transposed, amx,
        )  # fmt: skip
        _finish_job(address(job), transposed)
