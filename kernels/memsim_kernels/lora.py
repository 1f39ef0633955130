"""LoRA: the low-rank factor of a product with a frozen matrix, and the gradients of an adapter.

T tokens, K in_features, N out_features, R rank; A [R, K], B [N, R], scale = lora_alpha / R. The low-rank product itself
is a part of the big one (see ``linear``): y = x W^T + h B^T with h = scale x A^T, and dx = dy W + dh A with
dh = scale dy B.
"""

from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange

from memsim_kernels.jit import BOOL, F32, INT, READ_2D, WRITE_2D, helper, kernel
from memsim_kernels.matmul import NO_BIAS, NO_MATRIX, NO_Q, NO_SCALES, WIDTH, product
from memsim_kernels.panel import copy_block
from memsim_kernels.tile import aligned, multiply
from memsim_kernels.vectors import LANES

_TOKENS = 128  # of a column tile, which is then 32 KiB and stays in the first-level cache for all rows of the result


class Adapter(NamedTuple):
    """A LoRA adapter beside a matrix, and a workspace for its low-rank factor.

    Attributes:
        a: [R, K].
        b: [N, R].
        scale: lora_alpha / R.
        work: [T, R], overwritten.
        lanes: Adapters side by side in ``a`` and ``b``: the rows of x are as many sequences of equal length one below
            the other, and lane i of them has rows i R / lanes ... of ``a`` and the same columns of ``b`` to itself.
            Only the forward product knows lanes.
    """

    a: F32 = NO_MATRIX
    b: F32 = NO_MATRIX
    scale: float = 1.0
    work: F32 = NO_MATRIX
    lanes: int = 1


NO_ADAPTER = Adapter()


def low_rank_forward(x: F32, adapter: Adapter) -> F32:
    """Return h [T, R] = scale x A^T, in the adapter's workspace; empty without an adapter."""
    if adapter.a.size:
        _project(adapter.work, x, adapter.a, True, adapter.scale)
        tokens, slot = len(x) // adapter.lanes, len(adapter.a) // adapter.lanes
        for lane in range(adapter.lanes if adapter.lanes > 1 else 0):
            rows = adapter.work[lane * tokens : (lane + 1) * tokens]
            rows[:, : lane * slot] = rows[:, (lane + 1) * slot :] = 0.0
    return adapter.work


def low_rank_backward(dy: F32, adapter: Adapter) -> F32:
    """Return dh [T, R] = scale dy B, in the adapter's workspace; empty without an adapter."""
    if adapter.b.size:
        _project(adapter.work, dy, adapter.b, False, adapter.scale)
    return adapter.work


def lora_backward(
    da: F32, db: F32, work: F32, dy: F32, x: F32, a: F32, b: F32, scale: float, accumulate: bool
) -> None:  # fmt: skip
    """Compute dA = dh^T x and dB = dy^T h, with h = scale x A^T and dh = scale dy B.

    Args:
        da: [R, K], written, or added to when ``accumulate``.
        db: [N, R], written, or added to when ``accumulate``.
        work: [2, T, R], overwritten.
        dy: [T, N].
        x: [T, K], as in the forward pass.
        a: [R, K].
        b: [N, R].
        scale: As in the forward pass.
        accumulate: Add to da and db.
    """
    h, dh = work
    _project(h, x, a, True, scale)
    _project(dh, dy, b, False, scale)
    workers = get_num_threads()
    _outer(da, dh, x, False, accumulate, workers)
    _outer(db, h, dy, True, accumulate, workers)


def linear_backward_weight(dw: F32, dy: F32, x: F32, accumulate: bool) -> None:
    """Compute dw = dy^T x, the gradient of a dense matrix of few rows, or add it to dw.

    Args:
        dw: [N, K], written, or added to when ``accumulate``.
        dy: [T, N].
        x: [T, K], as in the forward pass.
        accumulate: Add to dw.
    """
    _outer(dw, dy, x, False, accumulate, get_num_threads())


def _project(low: F32, x: F32, side: F32, transposed: bool, scale: float) -> None:
    product(low, x, side, NO_Q, NO_SCALES, NO_BIAS, LANES, False, transposed, scale, False)


@helper
def _move_tile(
    c: F32, tile: F32, rank: int, column: int, inside: int, width: int, transposed: bool, back: bool
) -> None:
    """Copy columns of c, or rows when it is transposed, to ``tile`` [rank, width], or ``back``."""
    for r in range(rank):
        for j in range(inside):
            if back and transposed:
                c[column + j, r] = tile[r * width + j]
            elif back:
                c[r, column + j] = tile[r * width + j]
            elif transposed:
                tile[r * width + j] = c[column + j, r]
            else:
                tile[r * width + j] = c[r, column + j]


@kernel(WRITE_2D, READ_2D, READ_2D, BOOL, BOOL, INT)
def _outer(c: F32, low: F32, x: F32, transposed: bool, accumulate: bool, workers: int) -> None:
    """Compute c [R, D] = low [T, R]^T x [T, D], or its transpose [D, R]; each thread does tiles of columns of x."""
    n_tokens, rank = low.shape
    columns = x.shape[1]
    tiles = (columns + WIDTH - 1) // WIDTH
    for worker in prange(workers):
        sums, panel = aligned(rank * WIDTH), aligned(_TOKENS * LANES)
        flat_low, flat_x = low.reshape(-1), x.reshape(-1)
        for index in range(worker * tiles // workers, (worker + 1) * tiles // workers):
            column = index * WIDTH
            inside = min(WIDTH, columns - column)
            width = (inside + LANES - 1) // LANES * LANES
            whole = inside // LANES * LANES
            sums[:] = np.float32(0.0)
            if accumulate:
                _move_tile(c, sums, rank, column, inside, width, transposed, False)
            for token in range(0, n_tokens, _TOKENS):
                count = min(_TOKENS, n_tokens - token)
                if whole > 0:
                    multiply(
                        sums, 0, width, sums, 0, width, flat_low, token * rank, 1, rank,
                        flat_x, token * columns + column, columns, rank, count, whole,
                    )  # fmt: skip
                if whole < inside:  # no room for a whole vector in the last columns of x
                    copy_block(
                        panel, 0, LANES, flat_x, token * columns + column + whole, columns, count, inside - whole,
                        LANES, np.float32(1.0),
                    )  # fmt: skip
                    multiply(
                        sums, whole, width, sums, whole, width, flat_low, token * rank, 1, rank,
                        panel, 0, LANES, rank, count, LANES,
                    )  # fmt: skip
            _move_tile(c, sums, rank, column, inside, width, transposed, True)
