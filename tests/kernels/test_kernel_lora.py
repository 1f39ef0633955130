import numpy as np
import pytest

import reference
from memsim_kernels import (
    Adapter,
    linear_backward_input,
    linear_forward,
    linear_q4_backward_input,
    linear_q4_forward,
    lora_backward,
)

# T, N, K, R: ranks below, at and above a vector, and one deeper than a panel (256 steps)
SHAPES = [
    (1, 8, 8, 1), (5, 40, 24, 1), (7, 24, 130, 8), (19, 70, 33, 16), (66, 33, 20, 3), (3, 20, 30, 70), (2, 3, 4, 300),
]  # fmt: skip
SCALE = 1.5


def adapter(kit, x, a, b):
    return Adapter(a, b, SCALE, kit.nans(len(x), len(a)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_forward_beside_a_dense_matrix(kit, shape, has_bias):
    tokens, n, k, rank = shape
    x, w, a, b = kit.normal(tokens, k), kit.normal(n, k), kit.normal(rank, k), kit.normal(n, rank)
    bias = kit.frozen(n) if has_bias else np.empty(0, np.float32)

    def call():
        y, low = kit.nans(tokens, n), adapter(kit, x, a, b)
        linear_forward(y, x, w, bias, low)
        return y, low.work

    y, h = kit.same_on_all_thread_counts(call)
    want_h = SCALE * x.astype(np.float64) @ a.T
    h_bound = kit.product_bound(x, SCALE * a.T)
    kit.close(h, want_h, h_bound)
    # One chain of k + rank steps over all terms; the error of h carries over.
    sizes = np.abs(x) @ np.abs(w.T) + SCALE * (np.abs(x) @ np.abs(a.T)) @ np.abs(b.T) + 5.0
    bound = h_bound @ np.abs(b.T) + (k + rank + 4) * 2.0**-24 * sizes
    kit.close(y, reference.linear_forward(x, w, bias if has_bias else None) + want_h @ b.T, bound)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_backward_input_beside_a_dense_matrix(kit, shape, accumulate):
    tokens, n, k, rank = shape
    dy, w, a, b = kit.normal(tokens, n), kit.normal(n, k), kit.normal(rank, k), kit.normal(n, rank)
    before = kit.normal(tokens, k)

    def call():
        dx = before.copy() if accumulate else kit.nans(tokens, k)
        linear_backward_input(dx, dy, w, accumulate, adapter(kit, dy, a, b))
        return (dx,)

    (dx,) = kit.same_on_all_thread_counts(call)
    want = reference.linear_backward_input(dy, w) + SCALE * dy.astype(np.float64) @ b @ a
    size_dh = SCALE * np.abs(dy) @ np.abs(b)
    sizes = np.abs(dy) @ np.abs(w) + size_dh @ np.abs(a) + np.abs(before)
    kit.close(dx, want + (before if accumulate else 0.0), (2 * n + rank + 8) * 2.0**-24 * sizes)


def test_packed_and_dense_give_the_same_bits(kit):
    tokens, n, k, rank = 9, 70, 160, 5
    q, scales, matrix = kit.packed(n, k, 32)
    w = matrix.astype(np.float32)
    x, dy, a, b = kit.normal(tokens, k), kit.normal(tokens, n), kit.normal(rank, k), kit.normal(n, rank)
    bias, y, dx = kit.frozen(n), [kit.nans(tokens, n) for _ in range(2)], [kit.nans(tokens, k) for _ in range(2)]
    linear_forward(y[0], x, w, bias, adapter(kit, x, a, b))
    linear_q4_forward(y[1], x, q, scales, bias, 32, adapter(kit, x, a, b))
    kit.same_bits(*y)
    linear_backward_input(dx[0], dy, w, False, adapter(kit, x, a, b))
    linear_q4_backward_input(dx[1], dy, q, scales, 32, False, adapter(kit, x, a, b))
    kit.same_bits(*dx)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_of_the_adapter(kit, shape, accumulate):
    tokens, n, k, rank = shape
    x, dy, a, b = kit.normal(tokens, k), kit.normal(tokens, n), kit.normal(rank, k), kit.normal(n, rank)
    before = kit.normal(rank, k), kit.normal(n, rank)

    def call():
        da, db = (before[0].copy(), before[1].copy()) if accumulate else (kit.nans(rank, k), kit.nans(n, rank))
        lora_backward(da, db, kit.nans(2 * tokens, rank).reshape(2, tokens, rank), dy, x, a, b, SCALE, accumulate)
        return da, db

    da, db = kit.same_on_all_thread_counts(call)
    want_da, want_db, _ = reference.lora_backward(dy, x, a, b, SCALE)
    old = before if accumulate else (0.0, 0.0)
    # Two chained products of at most max(n, k) and tokens rounding steps on sums of this size.
    steps = (max(n, k) + tokens + 8) * 2.0**-24
    kit.close(da, want_da + old[0], steps * ((SCALE * np.abs(dy) @ np.abs(b)).T @ np.abs(x) + np.abs(old[0])))
    kit.close(db, want_db + old[1], steps * (SCALE * np.abs(dy).T @ (np.abs(x) @ np.abs(a).T) + np.abs(old[1])))


def test_gradients_over_many_tokens_do_not_depend_on_how_they_are_tiled(kit):
    tokens, n, k, rank = 300, 40, 70, 8
    x, dy, a, b = kit.normal(tokens, k), kit.normal(tokens, n), kit.normal(rank, k), kit.normal(n, rank)
    results = []
    for cuts in ([0, 300], [0, 37, 256, 300]):
        da, db = np.zeros((rank, k), np.float32), np.zeros((n, rank), np.float32)
        for start, stop in zip(cuts, cuts[1:], strict=False):
            work = kit.nans(2 * (stop - start), rank).reshape(2, stop - start, rank)
            lora_backward(da, db, work, dy[start:stop], x[start:stop], a, b, SCALE, True)
        results.append((da, db))
    kit.same_bits(results[0][0], results[1][0])
    kit.same_bits(results[0][1], results[1][1])


def test_a_row_does_not_depend_on_the_other_rows(kit):
    x, w, a, b = kit.normal(7, 50), kit.normal(30, 50), kit.normal(8, 50), kit.normal(30, 8)
    results = []
    for rows in (7, 3):
        y, low = kit.nans(rows, 30), adapter(kit, x[:rows], a, b)
        linear_forward(y, x[:rows], w, np.empty(0, np.float32), low)
        results.append((y, low.work))
    kit.same_bits(results[0][0][:3], results[1][0])
    kit.same_bits(results[0][1][:3], results[1][1])
