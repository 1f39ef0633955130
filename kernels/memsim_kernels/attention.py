"""Causal grouped-query attention by tiles of 64 queries and 64 keys, with the softmax taken tile by tile.

T tokens, D head_dim, NH query heads, NKV key-value heads; query head h reads key-value head h // (NH / NKV). Nothing
of size T x T exists. A tile of scores is kept transposed, [keys, queries], so that the maximum, the exponentials and
the sums of a query run down a lane, and the tile is at once the right-hand side of the product with V.
Reference: FlashAttention-2, https://arxiv.org/abs/2307.08691.
"""

import math

import numpy as np
from numba import get_num_threads, prange

from memsim_kernels.exponential import exp
from memsim_kernels.jit import F32, INT, READ_2D, WRITE_2D, helper, kernel
from memsim_kernels.panel import transpose_block
from memsim_kernels.tile import aligned, multiply

TILE = 64


@helper
def _softmax_tile(scores: F32, keys: int, largest: F32, total: F32, shrink: F32) -> None:
    """Turn scores [keys, TILE] into exp(score - largest), with running maxima and sums; shrink rescales the past."""
    for lane in range(TILE):
        shrink[lane] = largest[lane]
    for j in range(keys):
        line = scores[j * TILE : (j + 1) * TILE]
        for lane in range(TILE):
            largest[lane] = line[lane] if line[lane] > largest[lane] else largest[lane]
    for lane in range(TILE):
        shrink[lane] = exp(shrink[lane] - largest[lane])
        total[lane] *= shrink[lane]
    for j in range(keys):
        line = scores[j * TILE : (j + 1) * TILE]
        for lane in range(TILE):
            line[lane] = exp(line[lane] - largest[lane])
            total[lane] += line[lane]


@helper
def _hide_future(scores: F32, keys: int) -> None:
    """Set score [key, query] of a tile on the diagonal to minus infinity where the key comes after the query."""
    for j in range(keys):
        scores[j * TILE : j * TILE + j] = np.float32(-np.inf)


@kernel(WRITE_2D, WRITE_2D, READ_2D, READ_2D, READ_2D, INT, INT, INT)
def _forward(o: F32, lse: F32, q: F32, k: F32, v: F32, n_heads: int, n_kv_heads: int, workers: int) -> None:
    count, stride = k.shape
    size = stride // n_kv_heads
    q_stride = q.shape[1]
    scale, one = np.float32(1.0 / math.sqrt(size)), np.float32(1.0)
    flat_o, flat_q, flat_k, flat_v = o.reshape(-1), q.reshape(-1), k.reshape(-1), v.reshape(-1)
    jobs = n_heads * ((count + TILE - 1) // TILE)
    for worker in prange(workers):
        queries, out, scores = aligned(size * TILE), aligned(size * TILE), aligned(TILE * TILE)
        largest, total, shrink = aligned(TILE), aligned(TILE), aligned(TILE)
        for job in range(worker, jobs, workers):
            tile, head = job // n_heads, job % n_heads
            row = tile * TILE
            rows = min(TILE, count - row)
            column = (head // (n_heads // n_kv_heads)) * size
            transpose_block(queries, 0, TILE, flat_q, row * q_stride + head * size, q_stride, rows, size, TILE, scale)
            out[:], largest[:], total[:] = np.float32(0.0), np.float32(-np.inf), np.float32(0.0)
            for key_tile in range(tile + 1):
                key = key_tile * TILE
                keys = min(TILE, count - key)
                at = key * stride + column
                scores[:] = np.float32(0.0)
                multiply(scores, 0, TILE, flat_k, at, stride, 1, queries, 0, TILE, keys, size, TILE)
                if key_tile == tile:
                    _hide_future(scores, keys)
                _softmax_tile(scores, keys, largest, total, shrink)
                for d in range(size):
                    line = out[d * TILE : (d + 1) * TILE]
                    for lane in range(TILE):
                        line[lane] *= shrink[lane]
                multiply(out, 0, TILE, flat_v, at, 1, stride, scores, 0, TILE, size, keys, TILE)
            for d in range(size):
                line = out[d * TILE : (d + 1) * TILE]
                for lane in range(TILE):
                    line[lane] /= total[lane]
            transpose_block(flat_o, row * q_stride + head * size, q_stride, out, 0, TILE, size, rows, size, one)
            for lane in range(rows):
                lse[head, row + lane] = largest[lane] + np.float32(math.log(total[lane]))


@kernel(
    WRITE_2D, WRITE_2D, WRITE_2D, WRITE_2D, READ_2D, READ_2D, READ_2D, READ_2D, READ_2D, READ_2D, INT, INT, INT
)  # fmt: skip
def _backward(
    dq: F32, dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int, workers: int,
) -> None:  # fmt: skip
    count, stride = k.shape
    q_stride = q.shape[1]
    size = stride // n_kv_heads
    group = n_heads // n_kv_heads
    scale, one = np.float32(1.0 / math.sqrt(size)), np.float32(1.0)
    flat_q, flat_k, flat_v, flat_do, flat_o = (
        q.reshape(-1), k.reshape(-1), v.reshape(-1), do.reshape(-1), o.reshape(-1)
    )  # fmt: skip
    flat_dq, flat_dk, flat_dv = dq.reshape(-1), dk.reshape(-1), dv.reshape(-1)
    tiles = (count + TILE - 1) // TILE
    for worker in prange(workers):
        queries, douts, grad = aligned(size * TILE), aligned(size * TILE), aligned(size * TILE)
        scores, dscores = aligned(TILE * TILE), aligned(TILE * TILE)
        shift, sums = aligned(TILE), aligned(TILE)
        for job in range(worker, n_heads * tiles, workers):
            tile, head = job // n_heads, job % n_heads
            row = tile * TILE
            rows = min(TILE, count - row)
            column = (head // group) * size
            transpose_block(queries, 0, TILE, flat_q, row * q_stride + head * size, q_stride, rows, size, TILE, scale)
            transpose_block(douts, 0, TILE, flat_do, row * q_stride + head * size, q_stride, rows, size, TILE, one)
            transpose_block(grad, 0, TILE, flat_o, row * q_stride + head * size, q_stride, rows, size, TILE, one)
            sums[:], shift[:] = np.float32(0.0), np.float32(0.0)
            for d in range(size):
                for lane in range(TILE):
                    sums[lane] += douts[d * TILE + lane] * grad[d * TILE + lane]
            for lane in range(rows):
                delta[head, row + lane] = sums[lane]
                shift[lane] = lse[head, row + lane]
            grad[:] = np.float32(0.0)
            for key_tile in range(tile + 1):
                key = key_tile * TILE
                keys = min(TILE, count - key)
                at = key * stride + column
                scores[:], dscores[:] = np.float32(0.0), np.float32(0.0)
                multiply(scores, 0, TILE, flat_k, at, stride, 1, queries, 0, TILE, keys, size, TILE)
                if key_tile == tile:
                    _hide_future(scores, keys)
                multiply(dscores, 0, TILE, flat_v, at, stride, 1, douts, 0, TILE, keys, size, TILE)
                for j in range(keys):
                    line, dline = scores[j * TILE : (j + 1) * TILE], dscores[j * TILE : (j + 1) * TILE]
                    for lane in range(TILE):
                        dline[lane] = exp(line[lane] - shift[lane]) * (dline[lane] - sums[lane]) * scale
                multiply(grad, 0, TILE, flat_k, at, 1, stride, dscores, 0, TILE, size, keys, TILE)
            transpose_block(flat_dq, row * q_stride + head * size, q_stride, grad, 0, TILE, size, rows, size, one)
    for worker in prange(workers):
        keys_in, values_in = aligned(size * TILE), aligned(size * TILE)
        grad_k, grad_v = aligned(size * TILE), aligned(size * TILE)
        weights, dscores = aligned(TILE * TILE), aligned(TILE * TILE)
        for job in range(worker, n_kv_heads * tiles, workers):
            tile, kv_head = job // n_kv_heads, job % n_kv_heads
            key = tile * TILE
            keys = min(TILE, count - key)
            transpose_block(keys_in, 0, TILE, flat_k, key * stride + kv_head * size, stride, keys, size, TILE, scale)
            transpose_block(values_in, 0, TILE, flat_v, key * stride + kv_head * size, stride, keys, size, TILE, one)
            grad_k[:], grad_v[:] = np.float32(0.0), np.float32(0.0)
            for head in range(kv_head * group, (kv_head + 1) * group):
                for query_tile in range(tile, tiles):
                    row = query_tile * TILE
                    rows = min(TILE, count - row)
                    at = row * q_stride + head * size
                    weights[:], dscores[:] = np.float32(0.0), np.float32(0.0)
                    multiply(weights, 0, TILE, flat_q, at, q_stride, 1, keys_in, 0, TILE, rows, size, TILE)
                    multiply(dscores, 0, TILE, flat_do, at, q_stride, 1, values_in, 0, TILE, rows, size, TILE)
                    for i in range(rows):
                        line, dline = weights[i * TILE : (i + 1) * TILE], dscores[i * TILE : (i + 1) * TILE]
                        if query_tile == tile:
                            line[i + 1 :] = np.float32(-np.inf)
                        offset, mean = lse[head, row + i], delta[head, row + i]
                        for lane in range(TILE):
                            line[lane] = exp(line[lane] - offset)
                            dline[lane] = line[lane] * (dline[lane] - mean) * scale
                    multiply(grad_v, 0, TILE, flat_do, at, 1, q_stride, weights, 0, TILE, size, rows, TILE)
                    multiply(grad_k, 0, TILE, flat_q, at, 1, q_stride, dscores, 0, TILE, size, rows, TILE)
            transpose_block(flat_dk, key * stride + kv_head * size, stride, grad_k, 0, TILE, size, keys, size, one)
            transpose_block(flat_dv, key * stride + kv_head * size, stride, grad_v, 0, TILE, size, keys, size, one)


def attention_forward(o: F32, lse: F32, q: F32, k: F32, v: F32, n_heads: int, n_kv_heads: int) -> None:
    """Compute o = softmax(q k^T / sqrt(D), causal) v for every head.

    Args:
        o: [T, NH * D], written.
        lse: [NH, T], written: log of the sum of exp of each row of scores; ``attention_backward`` reads it.
        q: [T, NH * D].
        k: [T, NKV * D].
        v: [T, NKV * D].
        n_heads: NH, a multiple of NKV.
        n_kv_heads: NKV.
    """
    _forward(o, lse, q, k, v, n_heads, n_kv_heads, get_num_threads())


def attention_backward(
    dq: F32, dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int,
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
    """
    _backward(dq, dk, dv, delta, do, q, k, v, o, lse, n_heads, n_kv_heads, get_num_threads())
