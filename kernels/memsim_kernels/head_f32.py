"""The language-model head in one pass over the vocabulary, in float32: loss, accuracy and dx without a logits tensor.

Each thread has a part of the vocabulary, and goes through it by tiles of TILE rows of W: logits x W^T, running
softmax, and the not yet normalised dx += exp(logits - largest) W. W comes from memory once; the two products want
different panels, so each unpacks its own from the packed tile, which the first left in cache. The parts are merged in
order: the same bits for the same number of threads.
"""

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from memsim_kernels.jit import (
    BOOL,
    F32,
    F64,
    FLOAT,
    INT,
    READ_1D,
    READ_2D,
    READ_IDS,
    READ_Q,
    READ_SCALES,
    U16,
    U32,
    WRITE_1D,
    WRITE_2D,
    WRITE_STATS,
    helper,
    kernel,
)  # fmt: skip
from memsim_kernels.matmul import NO_BIAS
from memsim_kernels.one_pass import (
    STATE_WORDS,
    absorb_row,
    add_to_lanes,
    count_valid,
    finish_row,
    merge_states,
    start_rows,
)  # fmt: skip
from memsim_kernels.panel import unpack_block, unpack_block_transposed
from memsim_kernels.tile import multiply

F16 = NDArray[np.float16]

ROWS = 256  # with dx, whose sums each thread holds; without, twice as many
TILE = 256
WIDTH = 64  # of the result, and
DEPTH = 128  # of the reduction: a panel of 32 KiB
_NO_GRADIENT = np.empty((0, 0), np.float32)


@helper
def _line(columns: int) -> int:
    return (columns + 15) // 16 * 16


@helper
def _part_floats(rows: int, columns: int, with_dx: bool) -> int:
    return rows * ((_line(columns) if with_dx else 0) + TILE) + WIDTH * TILE + 16


@helper
def _rows_at_once(with_dx: bool) -> int:
    return ROWS if with_dx else 2 * ROWS


@helper
def head_floats(tokens: int, columns: int, threads: int, with_dx: bool = True) -> int:
    """Return how many float32 of workspace the head needs: 1.2 MiB for each thread at T >= 256 and C = 896.

    Args:
        tokens: T.
        columns: C.
        threads: Threads that Numba will use.
        with_dx: Whether dx is wanted.
    """
    return threads * _part_floats(min(tokens, _rows_at_once(with_dx)), columns, with_dx)


@helper
def _start_logits(logits: F32, bias: F32, column: int, inside: int) -> None:
    """Set a tile of logits to the bias of its columns, if there is one, or to zero."""
    logits[:] = np.float32(0.0)
    if bias.size:
        own = bias[column : column + inside]
        for t in range(logits.size // TILE):
            logits[t * TILE : t * TILE + inside] = own


@helper
def _part(
    state: F64, labels: U32, x: F32, row: int, q: U32, scales: U16, bias: F32, vocabulary: int, group_size: int,
    with_dx: bool, begin: int, end: int, work: F32,
) -> None:  # fmt: skip
    """Do tiles begin ... end - 1 of the vocabulary for the rows of ``labels``."""
    rows, columns = labels.size, x.shape[1]
    line, flat_x = _line(columns) if with_dx else 0, x.reshape(-1)
    sums = work[: rows * line]
    logits = work[rows * line : rows * (line + TILE)]
    panel = work[rows * (line + TILE) : rows * (line + TILE) + WIDTH * TILE]
    start_rows(state)
    sums[:] = np.float32(0.0)
    for tile in range(begin, end):
        column = tile * TILE
        inside = min(TILE, vocabulary - column)
        wide = (inside + 15) // 16 * 16
        _start_logits(logits, bias, column, inside)
        for j in range(0, wide, WIDTH):
            width = min(WIDTH, wide - j)
            for k in range(0, columns, DEPTH):
                depth = min(DEPTH, columns - k)
                unpack_block_transposed(panel, 0, width, q, scales, group_size, column + j, width, k, depth)
                multiply(
                    logits,
                    j,
                    TILE,
                    logits,
                    j,
                    TILE,
                    flat_x,
                    row * columns + k,
                    columns,
                    1,
                    panel,
                    0,
                    width,
                    rows,
                    depth,
                    width,
                )
        for t in range(rows):
            factor = absorb_row(state[t], logits[t * TILE : t * TILE + wide], column, inside, np.int64(labels[t]))
            if with_dx and factor != np.float32(1.0):
                own = sums[t * line : (t + 1) * line]
                for j in range(line):
                    own[j] *= factor
        if with_dx:
            for j in range(0, line, WIDTH):
                width = min(WIDTH, line - j)
                unpack_block(panel, 0, width, q, scales, group_size, column, inside, j, width)
                multiply(sums, j, line, sums, j, line, logits, 0, TILE, 1, panel, 0, width, rows, inside, width)


@kernel(WRITE_STATS, WRITE_2D, READ_2D, READ_IDS, READ_Q, READ_SCALES, READ_1D, INT, INT, FLOAT, BOOL, WRITE_1D, INT)
def _head(
    stats: F64, dx: F32, x: F32, labels: U32, q: U32, scales: U16, bias: F32, vocabulary: int, group_size: int,
    scale: float, with_dx: bool, work: F32, workers: int,
) -> None:  # fmt: skip
    tokens, columns = x.shape
    tiles = (vocabulary + TILE - 1) // TILE
    factor = scale / max(1, count_valid(labels, vocabulary))
    stats[:] = 0.0
    for row in range(0, tokens, _rows_at_once(with_dx)):
        rows = min(_rows_at_once(with_dx), tokens - row)
        line, size = _line(columns), _part_floats(rows, columns, with_dx)
        states = np.empty((workers, rows, STATE_WORDS), np.float64)
        factors = np.empty((workers, rows), np.float32)
        own_labels = labels[row : row + rows]
        for worker in prange(workers):
            _part(
                states[worker], own_labels, x, row, q, scales, bias, vocabulary, group_size, with_dx,
                worker * tiles // workers, (worker + 1) * tiles // workers, work[worker * size : (worker + 1) * size],
            )  # fmt: skip
        merge_states(states, factors)
        add_to_lanes(stats, states[0], own_labels, row, tokens, vocabulary)
        if with_dx:
            for t in prange(rows):
                finish_row(
                    dx[row + t], work[t * line :], size, factors[:, t], states[0, t], np.int64(own_labels[t]),
                    vocabulary, q, scales, group_size, factor,
                )  # fmt: skip


def head_q4(
    stats: F64, dx: F32 | None, x: F32, labels: U32, q: U32, scales: F16, vocabulary: int, group_size: int,
    scale: float, work: F32, bias: F32 = NO_BIAS,
) -> None:  # fmt: skip
    """Compute the mean loss's parts and its gradient by x, for logits x W^T + bias, in float32.

    Args:
        stats: float64 [3], written: sum of losses, number correct, number valid. The sum is NaN when a label is
            neither below V nor IGNORED. [3 L] takes them for L lanes, equal stretches of the T tokens.
        dx: [T, C], written: scale / number valid * (softmax(logits) - onehot(labels)) W, zero rows for ignored labels;
            None to leave it out.
        x: [T, C].
        labels: uint32 [T]; IGNORED (0xFFFFFFFF) counts nowhere.
        q: Packed W [V, C], uint32 (see ``levels``).
        scales: float16, and its offsets.
        vocabulary: V.
        group_size: 32, 64 or 128.
        scale: Factor of the mean loss whose gradient dx is.
        work: At least ``head_floats(T, C, threads)``, overwritten.
        bias: [V], or an empty array for none.
    """
    out = _NO_GRADIENT if dx is None else dx
    _head(
        stats, out, x, labels, q, scales.view(np.uint16), bias, vocabulary, group_size, scale, dx is not None, work,
        get_num_threads(),
    )  # fmt: skip
