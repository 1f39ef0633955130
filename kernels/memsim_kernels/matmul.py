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
from memsim_kernels.panel import copy_panel, transpose_panel, unpack_panel, unpack_transposed_panel
from memsim_kernels.tile import LANES, aligned, multiply

WIDTH = 64
DEPTH = 128

NO_MATRIX = np.empty((0, 0), np.float32)
NO_Q = np.empty((0, 0, LANES), np.uint32)
NO_SCALES = np.empty((0, 0), np.uint16)
NO_BIAS = np.empty(0, np.float32)


@helper
def _start(c: F32, bias: F32, row: int, rows: int, column: int, columns: int) -> None:
    """Set the block of c to the bias, or to zero when there is none."""
    for i in range(row, row + rows):
        out = c[i, column : column + columns]
        if bias.size > 0:
            out[:] = bias[column : column + columns]
        else:
            out[:] = np.float32(0.0)


@kernel(WRITE_2D, READ_2D, READ_2D, READ_Q, READ_SCALES, READ_1D, INT, BOOL, BOOL, FLOAT, BOOL, INT)
def _product(
    c: F32, a: F32, b: F32, q: U32, scales: U16, bias: F32, group_size: int,
    a_transposed: bool, b_transposed: bool, scale: float, accumulate: bool, workers: int,
) -> None:  # fmt: skip
    m, n = c.shape
    depth_total = a.shape[0] if a_transposed else a.shape[1]
    a_row, a_k = (1, a.shape[1]) if a_transposed else (a.shape[1], 1)
    flat_a, flat_c = a.reshape(-1), c.reshape(-1)
    factor = np.float32(scale)
    tiles = (n + WIDTH - 1) // WIDTH
    for worker in prange(workers):
        panel = aligned(DEPTH * WIDTH)
        edge = aligned(WIDTH)
        for tile in range(worker * tiles // workers, (worker + 1) * tiles // workers):
            column = tile * WIDTH
            inside = min(WIDTH, n - column)
            if not accumulate:
                _start(c, bias, 0, m, column, inside)
            for k_at in range(0, depth_total, DEPTH):
                depth = min(DEPTH, depth_total - k_at)
                if q.size > 0 and b_transposed:
                    unpack_transposed_panel(panel, WIDTH, q, scales, group_size, k_at, depth, column)
                elif q.size > 0:
                    unpack_panel(panel, WIDTH, q, scales, group_size, k_at, depth, column)
                elif b_transposed:
                    transpose_panel(panel, WIDTH, b, k_at, depth, column, factor)
                else:
                    copy_panel(panel, WIDTH, b, k_at, depth, column, factor)
                if inside == WIDTH:
                    multiply(
                        flat_c, column, n, flat_a, k_at * a_k, a_row, a_k, panel, 0, WIDTH, m, depth, WIDTH
                    )
                else:
                    for i in range(m):
                        edge[:inside] = c[i, column:]
                        multiply(
                            edge, 0, 0, flat_a, k_at * a_k + i * a_row, 0, a_k, panel, 0, WIDTH, 1, depth, WIDTH
                        )
                        c[i, column:] = edge[:inside]


def product(
    c: F32, a: F32, b: F32, q: U32, scales: U16, bias: F32, group_size: int,
    a_transposed: bool, b_transposed: bool, scale: float, accumulate: bool,
) -> None:  # fmt: skip
    """Compute c = scale * op(a) op(b) + bias, or c += scale * op(a) op(b).

    Args:
        c: [M, N], written.
        a: [M, K], or [K, M] when ``a_transposed``.
        b: [K, N], or [N, K] when ``b_transposed``; empty when the matrix is packed in ``q`` and ``scales``.
        q: Packed b (see ``panel``), or empty.
        scales: Its scales, float16 bits, or empty.
        bias: [N], or empty. Not read when accumulating.
        group_size: Columns that share a scale; a multiple of 8.
        a_transposed: Multiply the transpose of ``a``.
        b_transposed: Multiply the transpose of ``b``, or of the packed matrix.
        scale: Factor of the product; rounds every element of a dense b once. Must be 1 for a packed b.
        accumulate: Add to c instead of overwriting it.
    """
    _product(
        c, a, b, q, scales, bias, group_size, a_transposed, b_transposed, scale, accumulate, get_num_threads()
    )
