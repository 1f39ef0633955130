"""One blocked, multi-threaded product for all matrix shapes of a training step, dense or INT4 on the right."""

import numpy as np
from numba import get_num_threads, prange

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
    WRITE_2D,
    helper,
    kernel,
)
from memsim_kernels.panel import copy_block, transpose_block, unpack_block, unpack_block_transposed
from memsim_kernels.tile import aligned, multiply
from memsim_kernels.vectors import LANES

WIDTH = 64  # columns of a tile of the result
DEPTH = 256  # steps of the reduction per panel, which is 64 KiB
ROWS = 256  # rows that use a panel before it is filled anew
GROUP = 2  # tiles side by side whose sums, 128 KiB, stay in the second-level cache for the whole reduction

NO_MATRIX = np.empty((0, 0), np.float32)
NO_Q = np.empty((0, 0, LANES), np.uint32)
NO_SCALES = np.empty((0, 0), np.uint16)
NO_BIAS = np.empty(0, np.float32)


@helper
def _row_blocks(m: int, tiles: int, workers: int) -> int:
    """Return into how many blocks to cut the rows, so that every worker gets its share of (block, tile) pairs."""
    blocks = (m + ROWS - 1) // ROWS
    if blocks * tiles < 4 * workers and blocks * tiles % workers > 0:
        blocks *= workers
    return min(blocks, m)


@helper
def _fill_dense(
    panel: F32, width: int, inside: int, b: F32, transposed: bool, k: int, depth: int, column: int, factor: np.float32
) -> None:
    """Write factor * rows k ... k + depth of a dense right-hand matrix to ``panel`` [depth, width]."""
    b_row = b.shape[1]
    if transposed:
        transpose_block(panel, 0, width, b.reshape(-1), column * b_row + k, b_row, inside, depth, width, factor)
    else:
        copy_block(panel, 0, width, b.reshape(-1), k * b_row + column, b_row, depth, inside, width, factor)


@helper
def _fill_panel(
    panel: F32, width: int, inside: int, b: F32, q: U32, scales: U16, group_size: int, transposed: bool,
    k: int, depth: int, column: int, factor: np.float32,
) -> None:  # fmt: skip
    """Write rows k ... k + depth of the right-hand matrix, columns from ``column`` on, to ``panel`` [depth, width]."""
    if q.size == 0:
        _fill_dense(panel, width, inside, b, transposed, k, depth, column, factor)
    elif transposed:
        unpack_block_transposed(panel, 0, width, q, scales, group_size, column, width, k, depth)
    else:
        unpack_block(panel, 0, width, q, scales, group_size, k, depth, column, width)


@helper
def _tiles(
    c: F32, a: F32, b: F32, q: U32, scales: U16, bias: F32, group_size: int, low: F32, side: F32,
    a_transposed: bool, b_transposed: bool, factor: np.float32, accumulate: bool,
    row: int, rows: int, column: int, columns: int, panel: F32, sums: F32, line: F32,
) -> None:  # fmt: skip
    """Compute rows x columns elements of c, at most ROWS x GROUP * WIDTH.

    The reduction goes over the columns of a, and then over those of low, whose right-hand matrix is side. Sums wait in
    ``sums`` between two panels; the first panel begins at c or the bias, the last one writes c. A tile that ends inside
    a vector has no room in c for whole vectors, and goes through ``sums`` at both ends.
    """
    n, one = c.shape[1], np.float32(1.0)
    a_row, a_k = (1, a.shape[1]) if a_transposed else (a.shape[1], 1)
    total, rank = a.shape[0] if a_transposed else a.shape[1], low.shape[1]
    flat_a, flat_low, flat_c, c_at = a.reshape(-1), low.reshape(-1), c.reshape(-1), row * n + column
    padded = (columns + LANES - 1) // LANES * LANES
    edge = columns % WIDTH if columns < padded else 0
    edge_at = columns - edge
    copy_block(line, 0, 0, bias, column, 0, 1, columns if bias.size > 0 else 0, padded, one)
    if accumulate:
        copy_block(sums, edge_at, padded, flat_c, c_at + edge_at, n, rows, edge, padded - edge_at, one)
    k = 0
    while k < total + rank:
        beside = k >= total
        depth = min(DEPTH, total + rank - k if beside else total - k)
        for at in range(0, padded, WIDTH):
            width, inside = min(WIDTH, padded - at), min(WIDTH, columns - at)
            out, out_at, out_row = sums, at, padded
            if k + depth == total + rank and inside == width:
                out, out_at, out_row = flat_c, c_at + at, n
            start, start_at, start_row = sums, at, padded
            if k == 0 and not accumulate:
                start, start_row = line, 0
            elif k == 0 and inside == width:
                start, start_at, start_row = flat_c, c_at + at, n
            if beside:
                _fill_dense(panel, width, inside, side, b_transposed, k - total, depth, column + at, one)
                multiply(
                    out, out_at, out_row, start, start_at, start_row, flat_low, row * rank + k - total, rank, 1,
                    panel, 0, width, rows, depth, width,
                )  # fmt: skip
            else:
                _fill_panel(panel, width, inside, b, q, scales, group_size, b_transposed, k, depth, column + at, factor)
                left = k * a_k + row * a_row
                multiply(
                    out, out_at, out_row, start, start_at, start_row, flat_a, left, a_row, a_k, panel, 0, width,
                    rows, depth, width,
                )  # fmt: skip
        k += depth
    copy_block(flat_c, c_at + edge_at, n, sums, edge_at, padded, rows, edge, edge, one)


@kernel(
    WRITE_2D, READ_2D, READ_2D, READ_Q, READ_SCALES, READ_1D, INT, READ_2D, READ_2D, BOOL, BOOL, FLOAT, BOOL, INT
)  # fmt: skip
def _product(
    c: F32, a: F32, b: F32, q: U32, scales: U16, bias: F32, group_size: int, low: F32, side: F32,
    a_transposed: bool, b_transposed: bool, scale: float, accumulate: bool, workers: int,
) -> None:  # fmt: skip
    m, n = c.shape
    tiles = (n + WIDTH - 1) // WIDTH
    blocks = _row_blocks(m, tiles, workers)
    widest = min(GROUP * WIDTH, (n + LANES - 1) // LANES * LANES)
    for worker in prange(workers):
        panel, line = aligned(DEPTH * min(WIDTH, widest)), aligned(widest)
        sums = aligned((m + blocks - 1) // blocks * widest)
        unit, last = worker * blocks * tiles // workers, (worker + 1) * blocks * tiles // workers
        while unit < last:
            block, tile = unit // tiles, unit % tiles
            count = min(GROUP, last - unit, tiles - tile)
            row = block * m // blocks
            rows = (block + 1) * m // blocks - row
            columns = min(count * WIDTH, n - tile * WIDTH)
            _tiles(
                c, a, b, q, scales, bias, group_size, low, side, a_transposed, b_transposed, np.float32(scale),
                accumulate, row, rows, tile * WIDTH, columns, panel, sums, line,
            )  # fmt: skip
            unit += count


def product(
    c: F32, a: F32, b: F32, q: U32, scales: U16, bias: F32, group_size: int,
    a_transposed: bool, b_transposed: bool, scale: float, accumulate: bool,
    low: F32 = NO_MATRIX, side: F32 = NO_MATRIX,
) -> None:  # fmt: skip
    """Compute c = scale * op(a) op(b) + low op(side) + bias, or c += scale * op(a) op(b) + low op(side).

    Args:
        c: [M, N], written.
        a: [M, K], or [K, M] when ``a_transposed``.
        b: [K, N], or [N, K] when ``b_transposed``; empty when the matrix is packed in ``q`` and ``scales``.
        q: Packed b (see ``panel``), or empty.
        scales: Its scales, float16 bits, or empty.
        bias: [N], or empty. Not read when accumulating.
        group_size: Columns that share a scale, a multiple of 16; not read for a dense b.
        a_transposed: Multiply the transpose of ``a``.
        b_transposed: Multiply the transposes of ``b``, or of the packed matrix, and of ``side``.
        scale: Factor of the product; rounds every element of a dense b once. Must be 1 for a packed b.
        accumulate: Add to c instead of overwriting it.
        low: [M, R], the left factor of a low-rank product beside the other one, or empty.
        side: [R, N], or [N, R] when ``b_transposed``: its right factor.
    """
    _product(
        c, a, b, q, scales, bias, group_size, low, side, a_transposed, b_transposed, scale, accumulate,
        get_num_threads(),
    )  # fmt: skip
