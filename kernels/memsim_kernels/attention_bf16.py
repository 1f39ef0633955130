"""Attention as in ``attention``, with products in bf16 and sums, softmax and everything kept in float32.

Over 250 lines: forward and backward share their tiles.

q, k, v, do, the probabilities and their gradients are rounded to bf16 where they enter a product, as flash attention
on accelerators does. Bits depend on the engine (AMX or vectors), never on threads or addresses.
"""

import numpy as np
from numba import get_num_threads, prange

from memsim_kernels import cpu
from memsim_kernels.attention import (
    LOG2_E,
    finish_forward_tile,
    hide_unseen,
    keys_seen,
    last_query,
    scale_block,
    start_backward_tile,
    start_forward_tile,
)  # fmt: skip
from memsim_kernels.bf16_block import release_tiles
from memsim_kernels.bf16_forms import STEPS, left, left_to_right, multiply_forms, right, right_to_left
from memsim_kernels.bf16_panels import THREAD_FLOATS, prepare_tiles
from memsim_kernels.jit import BOOL, F32, FLOAT, INT, READ_2D, WRITE_2D, helper, kernel
from memsim_kernels.panel import transpose_block
from memsim_kernels.softmax_tile import TILE, gradient_tile, scale_columns, softmax_tile
from memsim_kernels.tile import aligned
from memsim_kernels.vectors import address_of as address

AREA = TILE * TILE  # floats of a tile of scores; half of that in bf16
_LINE = 4 * TILE  # bytes of a row of scores
_STATE = 5 * TILE + 16  # zeros, what is known of each query, and an empty job


@helper
def _forward_tile(
    o: F32, lse: F32, q: F32, k: F32, v: F32, n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool,
    head: int, row: int, amx: bool, work: F32,
) -> None:  # fmt: skip
    """Compute one head of the 64 tokens of a query tile. A form of [64, D] takes 32 D floats."""
    (count, q_row), k_row = q.shape, k.shape[1]
    size = q_row // n_heads
    form = size * TILE // 2
    state = work[:_STATE]
    zeros, largest, total, shrink = state[:TILE], state[TILE:], state[2 * TILE :], state[3 * TILE :]
    state[5 * TILE :] = np.float32(0.0)
    scores, out = work[_STATE:], work[_STATE + AREA :]
    forms = address(work) + 4 * (_STATE + AREA + 2 * form)
    queries, keys_left, values, spare = forms, forms + 4 * form, forms + 8 * form, forms + 12 * form
    weights = forms + 16 * form
    no_job, no_sums = address(state) + 20 * TILE, address(zeros)
    rows, factor = min(TILE, count - row), np.float32(scale * LOG2_E)
    left(spare, address(q) + (row * q_row + head * size) * 4, q_row * 4, rows, size)
    left_to_right(queries, spare, size)
    start_forward_tile(out, zeros, largest, total, size)
    first, end = keys_seen(row, rows, count, window, causal)
    for key in range(first, end, TILE):
        keys = min(TILE, count - key)
        at = (key * k_row + head // (n_heads // n_kv_heads) * size) * 4
        left(keys_left, address(k) + at, k_row * 4, keys, size)
        right(spare, address(v) + at, k_row * 4, keys, size, no_sums)
        right_to_left(values, spare, size)
        multiply_forms(address(scores), _LINE, no_sums, 0, keys_left, queries, 4, 2, size // 32, no_job, amx)
        hide_unseen(scores, row, key, keys, window, causal)
        softmax_tile(scores, keys, factor, largest, total, shrink)
        scale_columns(out, size, shrink)
        right(weights, address(scores), _LINE, keys, TILE, no_sums)
        multiply_forms(address(out), _LINE, address(out), _LINE, values, weights, size // 16, 2, STEPS, no_job, amx)
    finish_forward_tile(o, lse, out, largest, total, shrink, head, row, rows, size)


@helper
def _add_product(
    grad: F32, at: int, grad_row: int, tile: int, form: int, right_form: int, keys: int, size: int, sums: F32,
    no_sums: int, no_job: int, amx: bool,
) -> None:  # fmt: skip
    """Add tile [keys, 64 queries] times a right factor [64 queries, D] to the gradient of a tile of keys."""
    left(form, tile, _LINE, keys, TILE)
    if keys == TILE:
        here = address(grad) + at * 4
        multiply_forms(here, grad_row * 4, here, grad_row * 4, form, right_form, 4, size // 32, STEPS, no_job, amx)
    else:
        multiply_forms(address(sums), size * 4, no_sums, 0, form, right_form, 4, size // 32, STEPS, no_job, amx)
        for j in range(keys):
            for d in range(size):
                grad[at + j * grad_row + d] += sums[j * size + d]


@helper
def _backward_tile(
    dq: F32, dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool,
    head: int, row: int, first: int, end: int, of_queries: bool, of_keys: bool, amx: bool, work: F32,
) -> None:  # fmt: skip
    """Compute what one head of a query tile and the keys first ... end - 1 make of dq, if wanted, and of dk and dv."""
    (count, q_row), k_row = q.shape, k.shape[1]
    size = q_row // n_heads
    form = size * TILE // 2
    state = work[:_STATE]
    zeros, mean, shift = state[:TILE], state[TILE:], state[2 * TILE :]
    state[:TILE], state[5 * TILE :] = np.float32(0.0), np.float32(0.0)
    scores, dscores, grad = work[_STATE:], work[_STATE + AREA :], work[_STATE + 2 * AREA :]
    sums = work[_STATE + 2 * AREA + 2 * form :]
    forms, step = address(work) + 4 * (_STATE + 2 * AREA + 4 * form), 4 * form
    queries, douts, query_rows, dout_rows = forms, forms + step, forms + 2 * step, forms + 3 * step
    keys_left, values_left, keys_turned, spare = (
        forms + 4 * step, forms + 5 * step, forms + 6 * step, forms + 7 * step,
    )  # fmt: skip
    weights = forms + 8 * step
    no_job, no_sums = address(state) + 20 * TILE, address(zeros)
    rows, factor = min(TILE, count - row), np.float32(scale * LOG2_E)
    q_at = (row * q_row + head * size) * 4
    start_backward_tile(delta, do, o, lse, sums, grad, mean, shift, head, row, rows, size, of_queries)
    left(spare, address(q) + q_at, q_row * 4, rows, size)
    left_to_right(queries, spare, size)
    left(spare, address(do) + q_at, q_row * 4, rows, size)
    left_to_right(douts, spare, size)
    if of_keys:
        right(query_rows, address(q) + q_at, q_row * 4, rows, size, no_sums)
        right(dout_rows, address(do) + q_at, q_row * 4, rows, size, no_sums)
    for key in range(first, end, TILE):
        keys = min(TILE, count - key)
        at = key * k_row + head // (n_heads // n_kv_heads) * size
        left(keys_left, address(k) + at * 4, k_row * 4, keys, size)
        left(values_left, address(v) + at * 4, k_row * 4, keys, size)
        multiply_forms(address(scores), _LINE, no_sums, 0, keys_left, queries, 4, 2, size // 32, no_job, amx)
        multiply_forms(address(dscores), _LINE, no_sums, 0, values_left, douts, 4, 2, size // 32, no_job, amx)
        hide_unseen(scores, row, key, keys, window, causal)
        gradient_tile(scores, dscores, keys, factor, shift, mean)
        if of_queries:
            right(spare, address(k) + at * 4, k_row * 4, keys, size, no_sums)
            right_to_left(keys_turned, spare, size)
            right(weights, address(dscores), _LINE, keys, TILE, no_sums)
            multiply_forms(
                address(grad), _LINE, address(grad), _LINE, keys_turned, weights, size // 16, 2, STEPS, no_job, amx
            )
        if of_keys:
            _add_product(
                dv.reshape(-1), at, k_row, address(scores), weights, dout_rows, keys, size, sums, no_sums, no_job, amx
            )
            _add_product(
                dk.reshape(-1), at, k_row, address(dscores), weights, query_rows, keys, size, sums, no_sums, no_job, amx
            )
    if of_queries:
        transpose_block(
            dq.reshape(-1), row * q_row + head * size, q_row, grad, 0, TILE, size, rows, size, np.float32(scale)
        )


@kernel(WRITE_2D, WRITE_2D, READ_2D, READ_2D, READ_2D, INT, INT, FLOAT, INT, BOOL, BOOL, INT)
def _forward(
    o: F32, lse: F32, q: F32, k: F32, v: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool, amx: bool, workers: int,
) -> None:  # fmt: skip
    jobs = (q.shape[0] + TILE - 1) // TILE * n_heads
    size = q.shape[1] // n_heads
    for worker in prange(workers):
        work = aligned(max(THREAD_FLOATS, _STATE + 2 * AREA + 4 * size * TILE))
        if amx:
            prepare_tiles(work)
        for job in range(worker, jobs, workers):
            head, row = job % n_heads, job // n_heads * TILE
            _forward_tile(o, lse, q, k, v, n_heads, n_kv_heads, scale, window, causal, head, row, amx, work)
        if amx:
            release_tiles()


@kernel(
    WRITE_2D, WRITE_2D, WRITE_2D, WRITE_2D, READ_2D, READ_2D, READ_2D, READ_2D, READ_2D, READ_2D,
    INT, INT, FLOAT, INT, BOOL, BOOL, INT,
)  # fmt: skip
def _backward(
    dq: F32, dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool, amx: bool, workers: int,
) -> None:  # fmt: skip
    count, size, group = q.shape[0], q.shape[1] // n_heads, n_heads // n_kv_heads
    tiles = (count + TILE - 1) // TILE
    whole = n_kv_heads % workers == 0  # the two ways to share the work are those of the float32 kernel
    floats = max(THREAD_FLOATS, _STATE + 3 * AREA + 6 * size * TILE)
    if not whole:
        for worker in prange(workers):
            work = aligned(floats)
            if amx:
                prepare_tiles(work)
            for job in range(worker, tiles * n_heads, workers):
                head, row = job % n_heads, job // n_heads * TILE
                first, end = keys_seen(row, min(TILE, count - row), count, window, causal)
                _backward_tile(
                    dq, dk, dv, delta, do, q, k, v, o, lse,
                    n_heads, n_kv_heads, scale, window, causal, head, row, first, end, True, False, amx, work,
                )  # fmt: skip
            if amx:
                release_tiles()
    parts = 1 if whole else tiles
    for worker in prange(workers):
        work = aligned(floats)
        if amx:
            prepare_tiles(work)
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
                        head, row, max(first, begin), min(end, stop), whole, True, amx, work,
                    )  # fmt: skip
            scale_block(dk, begin, stop, kv_head * size, size, np.float32(scale))
        if amx:
            release_tiles()


def attention_forward_bf16(
    o: F32, lse: F32, q: F32, k: F32, v: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool, amx: bool = cpu.HAS_AMX,
) -> None:  # fmt: skip
    """Compute ``attention_forward`` with products in bf16. Needs cpu.HAS_AVX512_BF16, and D a multiple of 32.

    Args:
        o: As in ``attention_forward``, like all that follows.
        lse: [NH, T], written.
        q: [T, NH * D].
        k: [T, NKV * D].
        v: [T, NKV * D].
        n_heads: NH, a multiple of NKV.
        n_kv_heads: NKV.
        scale: Factor of the scores.
        window: Keys that a query sees, or 0.
        causal: Whether query t sees keys 0 ... t only.
        amx: Use the tiles rather than the vectors.
    """
    _forward(o, lse, q, k, v, n_heads, n_kv_heads, scale, window, causal, amx, get_num_threads())


def attention_backward_bf16(
    dq: F32, dk: F32, dv: F32, delta: F32, do: F32, q: F32, k: F32, v: F32, o: F32, lse: F32,
    n_heads: int, n_kv_heads: int, scale: float, window: int, causal: bool, amx: bool = cpu.HAS_AMX,
) -> None:  # fmt: skip
    """Compute ``attention_backward`` with products in bf16. Needs cpu.HAS_AVX512_BF16, and D a multiple of 32.

    Args:
        dq: As in ``attention_backward``, like all that follows.
        dk: [T, NKV * D], written.
        dv: [T, NKV * D], written.
        delta: [NH, T], workspace.
        do: [T, NH * D].
        q: [T, NH * D].
        k: [T, NKV * D].
        v: [T, NKV * D].
        o: [T, NH * D], of ``attention_forward_bf16``.
        lse: [NH, T], of ``attention_forward_bf16``.
        n_heads: NH, a multiple of NKV.
        n_kv_heads: NKV.
        scale: Factor of the scores.
        window: Keys that a query sees, or 0.
        causal: Whether query t sees keys 0 ... t only.
        amx: Use the tiles rather than the vectors.
    """
    attrs = n_heads, n_kv_heads, scale, window, causal
    _backward(dq, dk, dv, delta, do, q, k, v, o, lse, *attrs, amx, get_num_threads())
