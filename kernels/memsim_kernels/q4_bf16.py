"""The product with an INT4 matrix in bf16, forward and backward-input: unpacked panel by panel inside the loops.

Of a product y [M, N] = a [M, K] B, ROWS rows and STEPS * 32 of the reduction are done at a time. First their a is
rounded to bf16 and laid out in row blocks, once for all threads. Then each thread goes through its panels of 32
columns of B: one is multiplied by all row blocks, while the next is unpacked. y itself keeps the float32 sums.

A LoRA adapter makes the reduction R columns longer: y = [a, h] [B; S] with h = scale a P, where P [K, R] and S [R, N]
are the adapter's two matrices. h comes from the row blocks as they are laid out, which is the only pass over a.

Bits depend on the engine (the tiles of AMX add even and odd pairs apart), never on rows, threads or addresses.
"""

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from memsim_kernels import cpu
from memsim_kernels.bf16_block import (
    clear_line,
    copy_line,
    load_tile_shapes,
    release_tiles,
    round_column,
    round_line,
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
    JOB_GROUP_SHIFT,
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
from memsim_kernels.jit import (
    BOOL,
    F32,
    FLOAT,
    INT,
    READ_1D,
    READ_2D,
    READ_Q,
    READ_SCALES,
    U16,
    U32,
    WRITE_1D,
    WRITE_2D,
    helper,
    kernel,
)  # fmt: skip
from memsim_kernels.lora import NO_ADAPTER, Adapter
from memsim_kernels.panel import ALL, ONLY_UNPACKING, WITHOUT_UNPACKING
from memsim_kernels.vectors import address_of as address

F16 = NDArray[np.float16]
I64 = NDArray[np.int64]

ROWS = 512
STEPS = 33  # 1,024 of the reduction and an adapter of rank 32. Deep panels write few sums: 2 % of the time, 15 % at 8
COLUMNS = 32

# Of one thread, in bytes: two panels, two row blocks of results at an edge, the shapes of tiles, a bias, a job.
STEP_BYTES = 2 * HALF_BYTES
PANEL_BYTES = STEPS * STEP_BYTES
BLOCK_BYTES = 2048
_EDGE = 2 * PANEL_BYTES
_SHAPES = _EDGE + 2 * BLOCK_BYTES
_BIAS = _SHAPES + 64
_JOB = _BIAS + 128
THREAD_FLOATS = (_JOB + JOB_WORDS * 8) // 4

_NO_BIAS = np.empty(0, np.float32)


def workspace_floats(rows: int, depth: int, threads: int, rank: int = 0) -> int:
    """Return how many float32 of workspace a product needs: at most 1,060 KiB, and 137 KiB for each thread.

    An adapter adds 64 KiB for each 32 of its rank, and a panel of 66 KiB.

    Args:
        rows: M.
        depth: The length of the reduction: K forward, N backward.
        threads: Threads that Numba will use.
        rank: R of the adapter, 0 for none.
    """
    blocks, rank_steps = -(-min(rows, ROWS) // 16), -(-rank // 32)
    steps = min(STEPS, -(-depth // 32) + rank_steps)
    adapter = blocks * rank_steps * BLOCK_BYTES + (PANEL_BYTES if rank else 0)
    return blocks * steps * (STEP_BYTES // 8) + adapter // 4 + threads * THREAD_FLOATS + 16


@helper
def start_job(
    job: I64, target: int, panel: int, at: int, steps: int, q: U32, scales: U16, group_shift: int, transposed: bool
) -> None:
    """Describe the unpacking of a panel: 32 columns of the result, ``steps`` of the reduction from ``at`` on."""
    n16, k8 = q.shape[0], q.shape[1]
    job[JOB_UNIT] = 0
    job[JOB_PANEL] = target
    job[JOB_GROUP_SHIFT] = group_shift
    if transposed:
        inside = panel * 2 + 1 < n16  # else the upper half repeats the lower one, and nobody reads its result
        job[JOB_Q] = address(q) + (panel * 2 * k8 + at * 4) * 64
        job[JOB_Q_STEP] = k8 * 64 if inside else 0
        job[JOB_SCALES] = address(scales) + panel * 64
        job[JOB_SCALES_STEP] = 32 if inside else 0
        job[JOB_SCALES_GROUP] = n16 * 32
        job[JOB_COLUMN] = at * 4
        job[JOB_UNITS] = steps * 8
        job[JOB_AHEAD] = 2 * k8 * 64
    else:
        job[JOB_Q] = address(q) + (at * 2 * k8 + panel * 4) * 64
        job[JOB_Q_STEP] = k8 * 64
        job[JOB_SCALES] = address(scales) + ((panel * 4) >> group_shift) * n16 * 32 + at * 64
        job[JOB_UNITS] = min(steps * 2, n16 - at * 2) * 8
        job[JOB_AHEAD] = 256
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
def _multiply_blocks(
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
        _multiply_blocks(
            start, s_row, s_half, s_block, end, e_row, e_half, e_block,
            a + i * steps * 1024, steps * 1024, b, count, steps, address(job), rate, transposed, amx,
        )  # fmt: skip
        if not inside:
            for j in range(count):
                _copy_block(
                    here + j * 16 * y_row, y_row, 64, edge + j * BLOCK_BYTES, 64, 1024, rows - (i + j) * 16, columns
                )


@helper
def pack_rows(target: int, x: int, x_row: int, rows: int, depth: int) -> None:
    """Round one row block, zero beyond ``rows`` and ``depth``, to bf16 [step][row][32]."""
    for i in range(16):
        for step in range((depth + 31) // 32):
            round_line(target + (step * 16 + i) * 64, x + i * x_row + step * 128, depth - step * 32 if i < rows else 0)


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
def _round_step(target: int, matrix: F32, transposed: bool, k: int, column: int, factor: np.float32) -> None:
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
    job = own[_JOB // 4 : THREAD_FLOATS].view(np.int64)
    padded = own[_BIAS // 4 : _BIAS // 4 + COLUMNS]
    for panel in range(begin - 1, end):
        following = panel + 1
        job[JOB_UNIT] = job[JOB_UNITS] = 0
        target = base + following % 2 * PANEL_BYTES
        if following < end and packed_steps > 0 and leave_out != WITHOUT_UNPACKING:
            start_job(job, target, following, at, packed_steps, q, scales, group_shift, transposed)
        if following < end:
            for i in range(side_steps):
                _round_step(
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


@helper
def _mask_lanes(work: F32, at: int, row: int, side_at: int, side_steps: int, lane_rows: int, slot: int) -> None:
    """Clear, in 16 rows of h, the ranks that are not of the row's own lane."""
    for i in range(16):
        lane = (row + i) // lane_rows
        for step in range(side_at, side_at + side_steps):
            for j in range(32):
                if (step * 32 + j) // slot != lane:
                    work[at + step * (BLOCK_BYTES // 4) + i * 32 + j] = np.float32(0.0)


@helper
def _lay_out_block(
    a: int, x: int, x_row: int, rows: int, depth: int, packed_steps: int, side_at: int, side_steps: int,
    low: int, first: bool, panel: int, group: int, rank_steps: int, job: int, transposed: bool, amx: bool,
    work: F32, row: int, lane_rows: int, slot: int,
) -> None:  # fmt: skip
    """Round a row block, add its product with the panel of 32 ranks to h, and append h to it once that is complete."""
    if group == 0:
        pack_rows(a, x, x_row, rows, depth)
    if rank_steps > 0 and packed_steps > 0:
        place = low + group * BLOCK_BYTES
        if first:
            for line in range(32):
                clear_line(place + line * 64)
        _multiply_blocks(
            place, 128, 64, 0, place, 128, 64, 0, a, 0, panel, 1, packed_steps, job, 0, transposed, amx
        )  # fmt: skip
    if group == rank_steps - 1:
        if lane_rows > 0:
            _mask_lanes(work, (low - address(work)) // 4, row, side_at, side_steps, lane_rows, slot)
        for step in range(side_steps):
            for i in range(16):
                source = low + (side_at + step) * BLOCK_BYTES + i * 128
                round_line(a + ((packed_steps + step) * 16 + i) * 64, source, 32)


@kernel(
    WRITE_2D, READ_2D, READ_Q, READ_SCALES, READ_1D, INT, READ_2D, READ_2D, FLOAT, BOOL, BOOL, BOOL, WRITE_1D, INT, INT,
    INT,
)  # fmt: skip
def _product(
    y: F32, x: F32, q: U32, scales: U16, bias: F32, group_size: int, into: F32, side: F32, lora_scale: float,
    transposed: bool, accumulate: bool, amx: bool, work: F32, workers: int, leave_out: int, lanes: int,
) -> None:  # fmt: skip
    """Compute y = x B + bias, or y += x B, with a low-rank product (scale x op(into)) op(side) beside it."""
    m, n = y.shape
    depth = x.shape[1]
    rank = side.shape[1] if transposed else side.shape[0]
    lane_rows, slot = (m // lanes, rank // lanes) if lanes > 1 else (0, 1)
    rank_steps, depth_steps, panels = (rank + 31) // 32, (depth + 31) // 32, (n + COLUMNS - 1) // COLUMNS
    group_shift = 2 if group_size == 32 else 3
    most_blocks, most_steps = (min(m, ROWS) + 15) // 16, min(STEPS, depth_steps + rank_steps)
    skip = (-address(work) // 4) % 16
    own_at = skip + most_blocks * most_steps * (STEP_BYTES // 8)
    a = address(work) + skip * 4
    panel = address(work) + (own_at + workers * THREAD_FLOATS) * 4
    low = panel + (PANEL_BYTES if rank > 0 else 0)
    for row in range(0, m, ROWS):
        rows = min(ROWS, m - row)
        blocks = (rows + 15) // 16
        for at in range(0, depth_steps + rank_steps, STEPS):
            steps = min(STEPS, depth_steps + rank_steps - at)
            packed_steps = max(0, min(steps, depth_steps - at))
            side_at, side_steps = max(0, at - depth_steps), steps - packed_steps
            for group in range(max(rank_steps, 1)):
                if rank > 0:
                    for step in prange(packed_steps):
                        _round_step(
                            panel + step * STEP_BYTES, into, transposed, (at + step) * 32, group * 32,
                            np.float32(lora_scale),
                        )  # fmt: skip
                for worker in prange(workers):
                    own = work[own_at + worker * THREAD_FLOATS : own_at + (worker + 1) * THREAD_FLOATS]
                    job = own[_JOB // 4 : THREAD_FLOATS].view(np.int64)
                    job[JOB_UNIT] = job[JOB_UNITS] = 0  # nothing is unpacked meanwhile
                    if amx:
                        prepare_tiles(own)
                    for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
                        first = row + block * 16
                        _lay_out_block(
                            a + block * steps * 1024, address(x) + (first * depth + at * 32) * 4, depth * 4, m - first,
                            min(packed_steps * 32, depth - at * 32), packed_steps, side_at, side_steps,
                            low + block * rank_steps * BLOCK_BYTES, at == 0, panel, group, rank_steps, address(job),
                            transposed, amx, work, first, lane_rows, slot,
                        )  # fmt: skip
                    if amx:
                        release_tiles()
            for worker in prange(workers):
                own = work[own_at + worker * THREAD_FLOATS : own_at + (worker + 1) * THREAD_FLOATS]
                begin, end = worker * panels // workers, (worker + 1) * panels // workers
                if amx:
                    prepare_tiles(own)
                multiply_panels(
                    address(y) + (row * n + begin * COLUMNS) * 4, n * 4, rows, n - begin * COLUMNS, begin, end,
                    a, at, steps, q, scales, bias, group_shift, transposed, accumulate or at > 0, amx, own, leave_out,
                    side, side_at, side_steps,
                )  # fmt: skip
                if amx:
                    release_tiles()


def linear_q4_forward_bf16(
    y: F32, x: F32, q: U32, scales: F16, bias: F32, group_size: int, work: F32,
    adapter: Adapter = NO_ADAPTER, amx: bool = cpu.HAS_AMX, leave_out: int = ALL,
) -> None:  # fmt: skip
    """Compute y = x W^T + bias + (scale x A^T) B^T, all factors rounded to bf16. Needs cpu.HAS_AVX512_BF16.

    Args:
        y: [T, N], written.
        x: [T, K].
        q: Packed W, uint32 [N16, K8, 16].
        scales: float16 [KG, 16 N16].
        bias: [N], or an empty array for none.
        group_size: 32 or 64.
        work: At least ``workspace_floats(T, K, threads, R)``, overwritten.
        adapter: A, B and scale, if there is one; its workspace is not used.
        amx: Use the tiles rather than the vectors.
        leave_out: For benchmarks: ALL, WITHOUT_UNPACKING or ONLY_UNPACKING. y is meaningless unless ALL.
    """
    _product(
        y, x, q, scales.view(np.uint16), bias, group_size, adapter.a, adapter.b, adapter.scale, True, False, amx, work,
        get_num_threads(), leave_out, adapter.lanes,
    )  # fmt: skip


def linear_q4_backward_input_bf16(
    dx: F32, dy: F32, q: U32, scales: F16, group_size: int, accumulate: bool, work: F32,
    adapter: Adapter = NO_ADAPTER, amx: bool = cpu.HAS_AMX, leave_out: int = ALL,
) -> None:  # fmt: skip
    """Compute dx = dy W + (scale dy B) A, or add it to dx, all factors rounded to bf16. Needs cpu.HAS_AVX512_BF16.

    Args:
        dx: [T, K], written, or added to when ``accumulate``.
        dy: [T, N].
        q: Packed W, uint32 [N16, K8, 16].
        scales: float16 [KG, 16 N16].
        group_size: 32 or 64.
        accumulate: Add to dx.
        work: At least ``workspace_floats(T, N, threads, R)``, overwritten.
        adapter: A, B and scale, if there is one; its workspace is not used.
        amx: Use the tiles rather than the vectors.
        leave_out: For benchmarks, as in ``linear_q4_forward_bf16``.
    """
    _product(
        dx, dy, q, scales.view(np.uint16), _NO_BIAS, group_size, adapter.b, adapter.a, adapter.scale, False, accumulate,
        amx, work, get_num_threads(), leave_out, 1,
    )  # fmt: skip
