"""Grouped-query attention by tiles of 64 queries and 64 keys, with the softmax taken tile by tile.

T tokens, D head_dim, NH query heads, NKV key-value heads; query head h reads key-value head h // (NH / NKV). Query t
sees all keys, or, if ``causal``, keys 0 ... t, or the last ``window`` of those. Tiles in which no query sees a key are
skipped. Nothing of size T x T exists. A tile of scores is kept transposed, [keys, queries], so that the maximum, the exponentials and
the sums of a query run down a lane, and the tile is at once the right-hand side of the product with V.
Reference: FlashAttention-2, https://arxiv.org/abs/2307.08691.
"""

import math
from typing import Any

import numpy as np
from numba import get_num_threads, prange

from memsim_kernels.exponential import exp
from memsim_kernels.jit import BOOL, F32, FLOAT, INT, READ_2D, WRITE_2D, helper, kernel
from memsim_kernels.panel import transpose_block
from memsim_kernels.tile import aligned, multiply

TILE = 64
# Where a running maximum begins: finite, so that a query that sees nothing of its first tile gets exp(-inf) = 0.
LOWEST = np.finfo(np.float32).min


@helper
def _keys_seen(row: int, rows: int, count: int, window: int, causal: bool) -> Any:
    """Return the first key that one of the queries row ... row + rows - 1 sees, and the one after the last."""
    return max(0, row - window + 1) if window else 0, row + rows if causal else count


@helper
def _queries_seeing(key: int, keys: int, count: int, window: int, causal: bool) -> Any:
    """Return the first query that sees one of the keys key ... key + keys - 1, and the one after the last."""
    return key if causal else 0, min(count, key + keys - 1 + window) if window else count


@helper
def _hide_by_key(scores: F32, row: int, key: int, keys: int, window: int) -> None:
    """Set score [key, query] of a tile to minus infinity where the query does not see the key, if causal."""
    for j in range(keys):
        for lane in range(min(TILE, key + j - row)):
            scores[j * TILE + lane] = np.float32(-np.inf)
        if window:
            for lane in range(max(0, key + j + window - row), TILE):
                scores[j * TILE + lane] = np.float32(-np.inf)


@helper
def _hide_by_query(scores: F32, row: int, rows: int, key: int, window: int) -> None:
    """As ``_hide_by_key``, for a tile [queries, keys]."""
    for i in range(rows):
        for lane in range(max(0, row + i + 1 - key), TILE):
            scores[i * TILE + lane] = np.float32(-np.inf)
        if window:
            for lane in range(min(TILE, row + i - window + 1 - key)):
                scores[i * TILE + lane] = np.float32(-np.inf)


@helper
def _softmax_tile(scores: F32, keys: int, largest: F32, total: F32, shrink: F32) -> None:
    """Turn scores [keys, TILE] into exp(score - largest), with running maxima and sums; shrink rescales the past."""
    for lane in range(TILE):
        shrink[lane] = largest[lane]
    for j in range(keys):
        for lane in range(TILE):
            score = scores[j * TILE + lane]
            largest[lane] = score if score > largest[lane] else largest[lane]
    for lane in range(TILE):
        shrink[lane] = exp(shrink[lane] - largest[lane])
        total[lane] *= shrink[lane]
    for j in range(keys):
        for lane in range(TILE):
            scores[j * TILE + lane] = exp(scores[j * TILE + lane] - largest[lane])
            total[lane] += scores[j * TILE + lane]


@helper
def _forward_tile(
    o: F32, lse: F32, q: F32, k: F32, v: F32, n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool,
    head: int, tile: int, work: F32,
) -> None:  # fmt: skip
    """Compute one head of the 64 tokens of a query tile."""
    (count, q_row), k_row = q.shape, k.shape[1]
    size = q_row // n_heads
    flat_o, flat_q, flat_k, flat_v = o.reshape(-1), q.reshape(-1), k.reshape(-1), v.reshape(-1)
    queries, out, scores = work[: size * TILE], work[size * TILE :], work[2 * size * TILE :]
    sums = work[(2 * size + TILE) * TILE :]
    zeros, largest, total, shrink = sums[:TILE], sums[TILE:], sums[2 * TILE :], sums[3 * TILE :]
    row, one = tile * TILE, np.float32(1.0)
    rows, q_at = min(TILE, count - row), row * q_row + head * size
    transpose_block(queries, 0, TILE, flat_q, q_at, q_row, rows, size, TILE, np.float32(scale))
    for lane in range(TILE):
        zeros[lane], largest[lane], total[lane] = np.float32(0.0), LOWEST, np.float32(0.0)
    for i in range(size * TILE):
        out[i] = np.float32(0.0)
    first, end = _keys_seen(row, rows, count, window, causal)
    for key in range(first // TILE * TILE, end, TILE):
        keys = min(TILE, count - key)
        at = key * k_row + head // (n_heads // n_kv_heads) * size
        multiply(scores, 0, TILE, zeros, 0, 0, flat_k, at, k_row, 1, queries, 0, TILE, keys, size, TILE)
        if causal and (key == row or window):
            _hide_by_key(scores, row, key, keys, window)
        _softmax_tile(scores, keys, largest, total, shrink)
        for d in range(size):
            for lane in range(TILE):
                out[d * TILE + lane] *= shrink[lane]
        multiply(out, 0, TILE, out, 0, TILE, flat_v, at, 1, k_row, scores, 0, TILE, size, keys, TILE)
    for d in range(size):
        for lane in range(TILE):
            out[d * TILE + lane] /= total[lane]
    transpose_block(flat_o, q_at, q_row, out, 0, TILE, size, rows, size, one)
    for lane in range(rows):
        lse[head, row + lane] = largest[lane] + np.float32(math.log(total[lane]))


@helper
def _backward_query_tile(
    dq: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool, head: int, tile: int, work: F32,
) -> None:  # fmt: skip
    """Compute dq and delta of one head of the 64 tokens of a query tile; tiles of scores are [keys, queries]."""
    (count, q_row), k_row = q.shape, k.shape[1]
    size = q_row // n_heads
    flat_q, flat_k, flat_v, flat_do = q.reshape(-1), k.reshape(-1), v.reshape(-1), do.reshape(-1)
    queries, douts, grad = work[: size * TILE], work[size * TILE :], work[2 * size * TILE :]
    scores, dscores = work[3 * size * TILE :], work[(3 * size + TILE) * TILE :]
    sums = work[(3 * size + 2 * TILE) * TILE :]
    zeros, mean, shift = sums[:TILE], sums[TILE:], sums[2 * TILE :]
    factor, one = np.float32(scale), np.float32(1.0)
    row = tile * TILE
    rows, q_at = min(TILE, count - row), row * q_row + head * size
    transpose_block(queries, 0, TILE, flat_q, q_at, q_row, rows, size, TILE, factor)
    transpose_block(douts, 0, TILE, flat_do, q_at, q_row, rows, size, TILE, one)
    transpose_block(grad, 0, TILE, o.reshape(-1), q_at, q_row, rows, size, TILE, one)
    for lane in range(TILE):
        zeros[lane], mean[lane], shift[lane] = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for d in range(size):
        for lane in range(TILE):
            mean[lane] += douts[d * TILE + lane] * grad[d * TILE + lane]
            grad[d * TILE + lane] = np.float32(0.0)
    for lane in range(rows):
        delta[head, row + lane] = mean[lane]
        shift[lane] = lse[head, row + lane]
    first, end = _keys_seen(row, rows, count, window, causal)
    for key in range(first // TILE * TILE, end, TILE):
        keys = min(TILE, count - key)
        at = key * k_row + head // (n_heads // n_kv_heads) * size
        multiply(scores, 0, TILE, zeros, 0, 0, flat_k, at, k_row, 1, queries, 0, TILE, keys, size, TILE)
        multiply(dscores, 0, TILE, zeros, 0, 0, flat_v, at, k_row, 1, douts, 0, TILE, keys, size, TILE)
        if causal and (key == row or window):
            _hide_by_key(scores, row, key, keys, window)
        for j in range(keys):
            for lane in range(TILE):
                p = exp(scores[j * TILE + lane] - shift[lane])
                dscores[j * TILE + lane] = p * (dscores[j * TILE + lane] - mean[lane]) * factor
        multiply(grad, 0, TILE, grad, 0, TILE, flat_k, at, 1, k_row, dscores, 0, TILE, size, keys, TILE)
    transpose_block(dq.reshape(-1), q_at, q_row, grad, 0, TILE, size, rows, size, one)


@helper
def _backward_key_tile(
    dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, lse: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool, kv_head: int, tile: int, work: F32,
) -> None:  # fmt: skip
    """Compute dk and dv of one head of the 64 tokens of a key tile; tiles of scores are [queries, keys]."""
    (count, q_row), k_row = q.shape, k.shape[1]
    size, group = q_row // n_heads, n_heads // n_kv_heads
    flat_q, flat_do = q.reshape(-1), do.reshape(-1)
    keys_in, values_in = work[: size * TILE], work[size * TILE :]
    grad_k, grad_v = work[2 * size * TILE :], work[3 * size * TILE :]
    weights, dscores = work[4 * size * TILE :], work[(4 * size + TILE) * TILE :]
    zeros = work[(4 * size + 2 * TILE) * TILE :]
    factor, one = np.float32(scale), np.float32(1.0)
    key = tile * TILE
    keys, k_at = min(TILE, count - key), key * k_row + kv_head * size
    transpose_block(keys_in, 0, TILE, k.reshape(-1), k_at, k_row, keys, size, TILE, factor)
    transpose_block(values_in, 0, TILE, v.reshape(-1), k_at, k_row, keys, size, TILE, one)
    for i in range(size * TILE):
        grad_k[i], grad_v[i] = np.float32(0.0), np.float32(0.0)
    for lane in range(TILE):
        zeros[lane] = np.float32(0.0)
    first, end = _queries_seeing(key, keys, count, window, causal)
    for head in range(kv_head * group, (kv_head + 1) * group):
        for row in range(first, end, TILE):
            rows, at = min(TILE, count - row), row * q_row + head * size
            multiply(weights, 0, TILE, zeros, 0, 0, flat_q, at, q_row, 1, keys_in, 0, TILE, rows, size, TILE)
            multiply(dscores, 0, TILE, zeros, 0, 0, flat_do, at, q_row, 1, values_in, 0, TILE, rows, size, TILE)
            if causal and (row == key or window):
                _hide_by_query(weights, row, rows, key, window)
            for i in range(rows):
                shift, mean = lse[head, row + i], delta[head, row + i]
                for lane in range(TILE):
                    p = exp(weights[i * TILE + lane] - shift)
                    weights[i * TILE + lane] = p
                    dscores[i * TILE + lane] = p * (dscores[i * TILE + lane] - mean) * factor
            multiply(grad_v, 0, TILE, grad_v, 0, TILE, flat_do, at, 1, q_row, weights, 0, TILE, size, rows, TILE)
            multiply(grad_k, 0, TILE, grad_k, 0, TILE, flat_q, at, 1, q_row, dscores, 0, TILE, size, rows, TILE)
    transpose_block(dk.reshape(-1), k_at, k_row, grad_k, 0, TILE, size, keys, size, one)
    transpose_block(dv.reshape(-1), k_at, k_row, grad_v, 0, TILE, size, keys, size, one)


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
            head, tile = job % n_heads, job // n_heads
            _forward_tile(o, lse, q, k, v, n_heads, n_kv_heads, scale, window, causal, head, tile, work)


@kernel(
    WRITE_2D, WRITE_2D, WRITE_2D, WRITE_2D, READ_2D, READ_2D, READ_2D, READ_2D, READ_2D, READ_2D,
    INT, INT, FLOAT, INT, BOOL, INT,
)  # fmt: skip
def _backward(
    dq: F32, dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool, workers: int,
) -> None:  # fmt: skip
    tiles = (q.shape[0] + TILE - 1) // TILE
    size = q.shape[1] // n_heads
    for worker in prange(workers):
        work = aligned((3 * size + 2 * TILE + 3) * TILE)
        for job in range(worker, tiles * n_heads, workers):
            _backward_query_tile(
                dq, delta, do, q, k, v, o, lse,
                n_heads, n_kv_heads, scale, window, causal, job % n_heads, job // n_heads, work,
            )  # fmt: skip
    for worker in prange(workers):
        work = aligned((4 * size + 2 * TILE + 1) * TILE)
        for job in range(worker, tiles * n_kv_heads, workers):
            _backward_key_tile(
                dk, dv, delta, do, q, k, v, lse,
                n_heads, n_kv_heads, scale, window, causal, job % n_kv_heads, job // n_kv_heads, work,
            )  # fmt: skip


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
