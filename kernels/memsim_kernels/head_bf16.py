"""The language-model head in one pass over the vocabulary, in bf16: loss, accuracy and dx without a logits tensor.

ROWS tokens are done at a time. Each thread has a part of the vocabulary, and goes through it by tiles of TILE rows of
W: logits x W^T, running softmax, and the not yet normalised dx += exp(logits - largest) W. W comes from memory once;
the two products want different panels, so each unpacks its own from the packed tile, which the first left in cache.
The parts are merged in order: the same bits for the same number of threads.
"""

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from memsim_kernels import cpu
from memsim_kernels.bf16_block import release_tiles, round_line
from memsim_kernels.bf16_panels import STEPS, THREAD_FLOATS, group_shift_of, multiply_panels, prepare_tiles
from memsim_kernels.bf16_rows import pack_rows
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
from memsim_kernels.matmul import NO_BIAS, NO_MATRIX
from memsim_kernels.one_pass import (
    STATE_WORDS,
    absorb_row,
    add_to_lanes,
    count_valid,
    finish_row,
    merge_states,
    start_rows,
)  # fmt: skip
from memsim_kernels.panel import ALL
from memsim_kernels.vectors import address_of as address

F16 = NDArray[np.float16]

ROWS = 256  # with dx, whose sums each thread holds; without, twice as many
TILE = 256
TILE_STEPS = TILE // 32
_NO_GRADIENT = np.empty((0, 0), np.float32)


@helper
def _line(columns: int) -> int:
    """Return the floats between rows of sums: an odd number of cache lines, which spreads them over the cache."""
    return (columns + 31) // 32 * 32 + 16


@helper
def _part_floats(rows: int, columns: int, with_dx: bool) -> int:
    return THREAD_FLOATS + rows * ((_line(columns) if with_dx else 0) + TILE + TILE // 2)


@helper
def _rows_at_once(with_dx: bool) -> int:
    return ROWS if with_dx else 2 * ROWS


@helper
def head_bf16_floats(tokens: int, columns: int, threads: int, with_dx: bool = True) -> int:
    """Return how many float32 of workspace the head needs.

    At T >= 256 and C = 896 that is 448 KiB, and 1.5 MiB for each thread.

    Args:
        tokens: T.
        columns: C.
        threads: Threads that Numba will use.
        with_dx: Whether dx is wanted.
    """
    rows = (min(tokens, _rows_at_once(with_dx)) + 15) // 16 * 16
    return rows * ((columns + 31) // 32 * 16) + threads * _part_floats(rows, columns, with_dx) + 16


@helper
def _absorb_tile(state: F64, logits: F32, weights: int, sums: F32, labels: U32, column: int, inside: int) -> None:
    """Turn a tile of logits into bf16 row blocks of weights, and rescale the sums of rows that met a larger logit."""
    rows = logits.size // TILE
    line, steps = sums.size // rows, (inside + 31) // 32
    for t in range(rows):
        row = logits[t * TILE : t * TILE + steps * 32]
        if t < labels.size:
            factor = absorb_row(state[t], row, column, inside, np.int64(labels[t]))
            if line > 0 and factor != np.float32(1.0):
                own = sums[t * line : (t + 1) * line]
                for j in range(line):
                    own[j] *= factor
        else:
            row[:] = np.float32(0.0)
        place = weights + (t // 16 * steps * 16 + t % 16) * 64
        for step in range(steps):
            round_line(place + step * 1024, address(row) + step * 128, 32)


@helper
def _part(
    state: F64, labels: U32, rows: int, columns: int, a: int, q: U32, scales: U16, bias: F32, vocabulary: int,
    group_shift: int, amx: bool, with_dx: bool, begin: int, end: int, work: F32,
) -> None:  # fmt: skip
    """Do tiles begin ... end - 1 of the vocabulary."""
    line, steps_in_all = _line(columns) if with_dx else 0, (columns + 31) // 32
    own = work[:THREAD_FLOATS]
    sums = work[THREAD_FLOATS : THREAD_FLOATS + rows * line]
    rest = work[THREAD_FLOATS + rows * line :]
    logits = rest[: rows * TILE]
    weights = address(rest) + rows * TILE * 4
    no_bias = work[:0]
    start_rows(state)
    sums[:] = np.float32(0.0)
    if amx:
        prepare_tiles(own)
    for tile in range(begin, end):
        column = tile * TILE
        inside = min(TILE, vocabulary - column)
        steps = (inside + 31) // 32
        for at in range(0, steps_in_all, STEPS):
            multiply_panels(
                address(logits), TILE * 4, rows, TILE, tile * TILE_STEPS, tile * TILE_STEPS + steps,
                a + at * rows * 64, at, min(STEPS, steps_in_all - at), q, scales, bias, group_shift, True, at > 0,
                amx, own, ALL, NO_MATRIX, 0, 0,
            )  # fmt: skip
        _absorb_tile(state, logits, weights, sums, labels, column, inside)
        if with_dx:
            multiply_panels(
                address(sums), line * 4, rows, line, 0, steps_in_all, weights, tile * TILE_STEPS, steps, q, scales,
                no_bias, group_shift, False, True, amx, own, ALL, NO_MATRIX, 0, 0,
            )  # fmt: skip
    if amx:
        release_tiles()


@kernel(
    WRITE_STATS, WRITE_2D, READ_2D, READ_IDS, READ_Q, READ_SCALES, READ_1D, INT, INT, FLOAT, BOOL, BOOL, WRITE_1D, INT
)  # fmt: skip
def _head(
    stats: F64, dx: F32, x: F32, labels: U32, q: U32, scales: U16, bias: F32, vocabulary: int, group_size: int,
    scale: float, with_dx: bool, amx: bool, work: F32, workers: int,
) -> None:  # fmt: skip
    tokens, columns = x.shape
    group_shift = group_shift_of(group_size)
    tiles = (vocabulary + TILE - 1) // TILE
    skip = (-address(work) // 4) % 16
    a = address(work) + skip * 4
    factor = scale / max(1, count_valid(labels, vocabulary))
    stats[:] = 0.0
    for row in range(0, tokens, _rows_at_once(with_dx)):
        inside = min(_rows_at_once(with_dx), tokens - row)
        blocks = (inside + 15) // 16
        rows, steps = blocks * 16, (columns + 31) // 32
        line, size = _line(columns), _part_floats(rows, columns, with_dx)
        states = np.empty((workers, inside, STATE_WORDS), np.float64)
        factors = np.empty((workers, inside), np.float32)
        own_labels = labels[row : row + inside]
        parts = work[skip + rows * steps * 16 :]
        for block in prange(blocks):
            first = row + block * 16
            for at in range(0, steps, STEPS):
                source = address(x) + (first * columns + at * 32) * 4
                depth = min(STEPS * 32, columns - at * 32)
                place = a + at * rows * 64 + block * ((depth + 31) // 32) * 1024
                pack_rows(place, source, columns * 4, tokens - first, depth)
        for worker in prange(workers):
            _part(
                states[worker], own_labels, rows, columns, a, q, scales, bias, vocabulary, group_shift, amx, with_dx,
                worker * tiles // workers, (worker + 1) * tiles // workers, parts[worker * size : (worker + 1) * size],
            )  # fmt: skip
        merge_states(states, factors)
        add_to_lanes(stats, states[0], own_labels, row, tokens, vocabulary)
        if with_dx:
            for t in prange(inside):
                finish_row(
                    dx[row + t], parts[THREAD_FLOATS + t * line :], size, factors[:, t], states[0, t],
                    np.int64(own_labels[t]), vocabulary, q, scales, group_size, factor,
                )  # fmt: skip


def head_q4_bf16(
    stats: F64, dx: F32 | None, x: F32, labels: U32, q: U32, scales: F16, vocabulary: int, group_size: int,
    scale: float, work: F32, amx: bool = cpu.HAS_AMX, bias: F32 = NO_BIAS,
) -> None:  # fmt: skip
    """Compute the mean loss's parts and its gradient by x, for logits x W^T + bias. Needs cpu.HAS_AVX512_BF16.

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
        work: At least ``head_bf16_floats(T, C, threads)``, overwritten.
        amx: Use the tiles rather than the vectors.
        bias: [V], or an empty array for none.
    """
    out = _NO_GRADIENT if dx is None else dx
    _head(
        stats, out, x, labels, q, scales.view(np.uint16), bias, vocabulary, group_size, scale, dx is not None, amx,
        work, get_num_threads(),
    )  # fmt: skip
