"""Grouped-query attention by tiles of 64 queries and 64 keys, with the softmax taken tile by tile.

Over 250 lines: forward and backward share their tiles.

T tokens, D head_dim, NH query heads, NKV key-value heads; query head h reads key-value head h // (NH / NKV). Query t
sees all keys, or, if ``causal``, keys 0 ... t, or the last ``window`` of those. Tiles in which no query sees a key are
skipped. Nothing of size T x T exists. A tile of scores is kept transposed, [keys, queries], so that the maximum, the
exponentials and the sums of a query run down a lane, and the tile is at once the right-hand side of the product with V.
Reference: FlashAttention-2, https://arxiv.org/abs/2307.08691.
"""

import math
from typing import Any

import numpy as np
from numba import get_num_threads, prange

from memsim_kernels.jit import BOOL, F32, FLOAT, INT, READ_2D, WRITE_2D, helper, kernel
from memsim_kernels.panel import copy_block, transpose_block
from memsim_kernels.softmax_tile import TILE, dot_columns, gradient_tile, hide_tile, scale_columns, softmax_tile
from memsim_kernels.tile import aligned, multiply
from memsim_kernels.vectors import LANES

LOG2_E = math.log2(math.e)
# Where a running maximum begins: finite, so that a query that sees nothing of its first tile gets 2^-inf = 0.
LOWEST = np.finfo(np.float32).min


@helper
def keys_seen(row: int, rows: int, count: int, window: int, causal: bool) -> Any:
    """Return the first key of the tiles that queries row ... row + rows - 1 see, and the one after their last key."""
    return max(0, row - window + 1) // TILE * TILE if window else 0, row + rows if causal else count


@helper
def last_query(stop: int, count: int, window: int) -> int:
    """Return one more than the last query that sees a key before ``stop``."""
    return min(count, stop - 1 + window) if window else count


@helper
def hide_unseen(scores: F32, row: int, key: int, keys: int, window: int, causal: bool) -> None:
    """Set the scores of a tile to minus infinity where the query does not see the key."""
    low = key - row
    high = low + window if window else 2 * TILE
    if causal and (low + keys > 1 or high < TILE):
        hide_tile(scores, keys, low, high)


@helper
def start_forward_tile(out: F32, zeros: F32, largest: F32, total: F32, size: int) -> None:
    """Set sums to zero and maxima to the lowest number."""
    for lane in range(TILE):
        zeros[lane], largest[lane], total[lane] = np.float32(0.0), LOWEST, np.float32(0.0)
    for i in range(size * TILE):
        out[i] = np.float32(0.0)


@helper
def finish_forward_tile(
    o: F32, lse: F32, out: F32, largest: F32, total: F32, shrink: F32, head: int, row: int, rows: int, size: int
) -> None:
    """Divide by the sums; write o and lse."""
    one = np.float32(1.0)
    for lane in range(TILE):
        shrink[lane] = one / total[lane] if lane < rows else one
    scale_columns(out, size, shrink)
    o_row = o.shape[1]
    transpose_block(o.reshape(-1), row * o_row + head * size, o_row, out, 0, TILE, size, rows, size, one)
    for lane in range(rows):
        lse[head, row + lane] = np.float32((largest[lane] + math.log2(total[lane])) / LOG2_E)


@helper
def _forward_tile(
    o: F32, lse: F32, q: F32, k: F32, v: F32, n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool,
    head: int, row: int, work: F32,
) -> None:  # fmt: skip
    """Compute one head of the 64 tokens of a query tile."""
    (count, q_row), k_row = q.shape, k.shape[1]
    size = q_row // n_heads
    flat_q, flat_k, flat_v = q.reshape(-1), k.reshape(-1), v.reshape(-1)
    queries, out, scores = work[: size * TILE], work[size * TILE :], work[2 * size * TILE :]
    sums = work[(2 * size + TILE) * TILE :]
    zeros, largest, total, shrink = sums[:TILE], sums[TILE:], sums[2 * TILE :], sums[3 * TILE :]
    factor, one = np.float32(scale * LOG2_E), np.float32(1.0)
    rows, q_at = min(TILE, count - row), row * q_row + head * size
    transpose_block(queries, 0, TILE, flat_q, q_at, q_row, rows, size, TILE, one)
    start_forward_tile(out, zeros, largest, total, size)
    first, end = keys_seen(row, rows, count, window, causal)
    for key in range(first, end, TILE):
        keys = min(TILE, count - key)
        at = key * k_row + head // (n_heads // n_kv_heads) * size
        multiply(scores, 0, TILE, zeros, 0, 0, flat_k, at, k_row, 1, queries, 0, TILE, keys, size, TILE)
        hide_unseen(scores, row, key, keys, window, causal)
        softmax_tile(scores, keys, factor, largest, total, shrink)
        scale_columns(out, size, shrink)
        multiply(out, 0, TILE, out, 0, TILE, flat_v, at, 1, k_row, scores, 0, TILE, size, keys, TILE)
    finish_forward_tile(o, lse, out, largest, total, shrink, head, row, rows, size)


@helper
def start_backward_tile(
    delta: F32, do: F32, o: F32, lse: F32, douts: F32, grad: F32, mean: F32, shift: F32,
    head: int, row: int, rows: int, size: int, of_queries: bool,
) -> None:  # fmt: skip
    """Write do transposed, and what each query subtracts; ``of_queries``: compute delta first, and clear ``grad``."""
    row_size, one, zero = do.shape[1], np.float32(1.0), np.float32(0.0)
    at = row * row_size + head * size
    transpose_block(douts, 0, TILE, do.reshape(-1), at, row_size, rows, size, TILE, one)
    if of_queries:
        transpose_block(grad, 0, TILE, o.reshape(-1), at, row_size, rows, size, TILE, one)
        dot_columns(mean, douts, grad, size)
        for lane in range(rows):
            delta[head, row + lane] = mean[lane]
        for i in range(size * TILE):
            grad[i] = zero
    for lane in range(TILE):
        mean[lane] = delta[head, row + lane] if lane < rows else zero
        shift[lane] = np.float32(lse[head, row + lane] * LOG2_E) if lane < rows else zero


@helper
def _add_product(
    grad: F32, at: int, grad_row: int, tile: F32, right: F32, keys: int, rows: int, size: int, line: int, sums: F32
) -> None:
    """Add tile [keys, rows] times right [rows, size] to the gradient of a tile of keys."""
    if size == line:
        multiply(grad, at, grad_row, grad, at, grad_row, tile, 0, TILE, 1, right, 0, line, keys, rows, size)
    else:
        copy_block(sums, 0, line, grad, at, grad_row, keys, size, line, np.float32(1.0))
        multiply(sums, 0, line, sums, 0, line, tile, 0, TILE, 1, right, 0, line, keys, rows, line)
        copy_block(grad, at, grad_row, sums, 0, line, keys, size, size, np.float32(1.0))


@helper
def _backward_tile(
    dq: F32, dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool,
    head: int, row: int, first: int, end: int, of_queries: bool, of_keys: bool, work: F32,
) -> None:  # fmt: skip
    """Compute what one head of a query tile and the keys first ... end - 1 make of dq, if wanted, and of dk and dv.

    dk lacks the factor ``scale``. Tiles of scores are [keys, queries].
    """
    (count, q_row), k_row = q.shape, k.shape[1]
    size = q_row // n_heads
    line = (size + LANES - 1) // LANES * LANES
    flat_q, flat_k, flat_v, flat_do = q.reshape(-1), k.reshape(-1), v.reshape(-1), do.reshape(-1)
    flat_dk, flat_dv = dk.reshape(-1), dv.reshape(-1)
    block = line * TILE
    queries, douts, query_rows, dout_rows = work[:block], work[block:], work[2 * block :], work[3 * block :]
    grad, scores, dscores = work[4 * block :], work[5 * block :], work[5 * block + TILE * TILE :]
    state = work[5 * block + 2 * TILE * TILE :]
    zeros, mean, shift, sums = state[:TILE], state[TILE:], state[2 * TILE :], state[3 * TILE :]
    factor, one = np.float32(scale * LOG2_E), np.float32(1.0)
    rows, q_at = min(TILE, count - row), row * q_row + head * size
    transpose_block(queries, 0, TILE, flat_q, q_at, q_row, rows, size, TILE, one)
    for lane in range(TILE):
        zeros[lane] = np.float32(0.0)
    start_backward_tile(delta, do, o, lse, douts, grad, mean, shift, head, row, rows, size, of_queries)
    if of_keys:
        copy_block(query_rows, 0, line, flat_q, q_at, q_row, rows, size, line, one)
        copy_block(dout_rows, 0, line, flat_do, q_at, q_row, rows, size, line, one)
    for key in range(first, end, TILE):
        keys = min(TILE, count - key)
        at = key * k_row + head // (n_heads // n_kv_heads) * size
        multiply(scores, 0, TILE, zeros, 0, 0, flat_k, at, k_row, 1, queries, 0, TILE, keys, size, TILE)
        multiply(dscores, 0, TILE, zeros, 0, 0, flat_v, at, k_row, 1, douts, 0, TILE, keys, size, TILE)
        hide_unseen(scores, row, key, keys, window, causal)
        gradient_tile(scores, dscores, keys, factor, shift, mean)
        if of_queries:
            multiply(grad, 0, TILE, grad, 0, TILE, flat_k, at, 1, k_row, dscores, 0, TILE, size, keys, TILE)
        if of_keys:
            _add_product(flat_dv, at, k_row, scores, dout_rows, keys, rows, size, line, sums)
            _add_product(flat_dk, at, k_row, dscores, query_rows, keys, rows, size, line, sums)
    if of_queries:
        transpose_block(dq.reshape(-1), q_at, q_row, grad, 0, TILE, size, rows, size, np.float32(scale))


@helper
def scale_block(x: F32, first: int, end: int, column: int, columns: int, factor: np.float32) -> None:
    """Multiply columns of rows first ... end - 1 by ``factor``; 0 makes even NaN 0."""
    for t in range(first, end):
        for d in range(column, column + columns):
            x[t, d] = x[t, d] * factor if factor else np.float32(0.0)


@kernel(WRITE_2D, WRITE_2D, READ_2D, READ_2D, READ_2D, INT, INT, FLOAT, INT, BOOL, INT)
def _forward(
    o: F32, lse: F32, q: F32, k: F32, v: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool, workers: int,
) -> None:  # fmt: skip
    jobs = (q.shape[0] + TILE - 1) // TILE * n_heads
    size = q.shape[1] // n_heads
    for worker in prange(workers):
        work = aligned((2 * size + TILE + 4) * TILE)
        for job in range(worker, jobs, workers):
            head, row = job % n_heads, job // n_heads * TILE
            _forward_tile(o, lse, q, k, v, n_heads, n_kv_heads, scale, window, causal, head, row, work)


@kernel(
    WRITE_2D, WRITE_2D, WRITE_2D, WRITE_2D, READ_2D, READ_2D, READ_2D, READ_2D, READ_2D, READ_2D,
    INT, INT, FLOAT, INT, BOOL, INT,
)  # fmt: skip
def _backward(
    dq: F32, dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool, workers: int,
) -> None:  # fmt: skip
    count, size, group = q.shape[0], q.shape[1] // n_heads, n_heads // n_kv_heads
    tiles = (count + TILE - 1) // TILE
    # A head of keys is one job if that occupies all threads. Otherwise its tiles are jobs, and dq a pass of its own,
    # for which scores are computed twice. Either way each sum runs over the same terms in the same order.
    whole = n_kv_heads % workers == 0
    floats = (6 * (size + LANES) + 2 * TILE + 3) * TILE
    if not whole:
        for worker in prange(workers):
            work = aligned(floats)
            for job in range(worker, tiles * n_heads, workers):
                head, row = job % n_heads, job // n_heads * TILE
                first, end = keys_seen(row, min(TILE, count - row), count, window, causal)
                _backward_tile(
                    dq, dk, dv, delta, do, q, k, v, o, lse,
                    n_heads, n_kv_heads, scale, window, causal, head, row, first, end, True, False, work,
                )  # fmt: skip
    parts = 1 if whole else tiles
    for worker in prange(workers):
        work = aligned(floats)
        for job in range(worker, parts * n_kv_heads, workers):
            kv_head, part = job % n_kv_heads, job // n_kv_heads
            begin, stop = (0, count) if whole else (part * TILE, min(count, (part + 1) * TILE))
            for x in (dk, dv):
                scale_block(x, begin, stop, kv_head * size, size, np.float32(0.0))
            last = last_query(stop, count, window)
            for head in range(kv_head * group, (kv_head + 1) * group):
                for row in range(begin if causal else 0, last, TILE):
                    first, end = keys_seen(row, min(TILE, count - row), count, window, causal)
                    _backward_tile(
                        dq, dk, dv, delta, do, q, k, v, o, lse, n_heads, n_kv_heads, scale, window, causal,
                        head, row, max(first, begin), min(end, stop), whole, True, work,
                    )  # fmt: skip
            scale_block(dk, begin, stop, kv_head * size, size, np.float32(scale))


def attention_forward(
    o: F32, lse: F32, q: F32, k: F32, v: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool,
) -> None:  # fmt: skip
    """Compute o = softmax(scale q k^T) v for every head, over the keys that a query sees.

    Args:
        o: [T, NH * D], written.
        lse: [NH, T], written: log of the sum of exp of each row of scores; ``attention_backward`` reads it.
        q: [T, NH * D].
        k: [T, NKV * D].
        v: [T, NKV * D].
        n_heads: NH, a multiple of NKV.
        n_kv_heads: NKV.
        scale: Factor of the scores, usually 1 / sqrt(D).
        window: Keys that a query sees, itself and those before it; 0 for all. Only if ``causal``.
        causal: Whether query t sees keys 0 ... t only, instead of all.
    """
    _forward(o, lse, q, k, v, n_heads, n_kv_heads, scale, window, causal, get_num_threads())


def attention_backward(
    dq: F32, dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool,
) -> None:  # fmt: skip
    """Compute the gradients of ``attention_forward``; scores are computed again, once for dq and once for dk and dv.

    Args:
        dq: [T, NH * D], written.
        dk: [T, NKV * D], written.
        dv: [T, NKV * D], written.
        delta: [NH, T], workspace: sum over D of do * o.
        do: [T, NH * D].
        q: [T, NH * D], as in the forward pass.
        k: [T, NKV * D], as in the forward pass.
        v: [T, NKV * D], as in the forward pass.
        o: [T, NH * D], from the forward pass.
        lse: [NH, T], from the forward pass.
        n_heads: NH, a multiple of NKV.
        n_kv_heads: NKV.
        scale: As in the forward pass.
        window: As in the forward pass.
        causal: As in the forward pass.
    """
    attrs = n_heads, n_kv_heads, scale, window, causal
    _backward(dq, dk, dv, delta, do, q, k, v, o, lse, *attrs, get_num_threads())
