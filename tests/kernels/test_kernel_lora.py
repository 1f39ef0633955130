import numpy as np
import pytest

import reference
from memsim_kernels import (
    lora_a_backward,
    lora_a_backward_input,
    lora_a_forward,
    lora_b_backward,
    lora_b_forward,
)

# T, N, K, R
SHAPES = [(1, 8, 8, 1), (5, 40, 24, 1), (7, 24, 130, 8), (19, 70, 33, 16), (66, 33, 20, 3), (3, 20, 30, 70)]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward(kit, shape):
    tokens, n, k, rank = shape
    x, a, b, before = kit.normal(tokens, k), kit.normal(rank, k), kit.normal(n, rank), kit.normal(tokens, n)

    def call():
        y, h = before.copy(), kit.nans(tokens, rank)
        lora_a_forward(h, x, a)
        lora_b_forward(y, h, b, 0.75)
        return y, h

    y, h = kit.same_on_all_thread_counts(call)
    added, want_h = reference.lora_forward(x, a, b, 0.75)
    h_bound = kit.product_bound(x, a.T)
    kit.close(h, want_h, h_bound)
    # The error of h carries over; then rank more steps, each rounding at most |before| + |h| |b|.
    bound = h_bound @ np.abs(b.T) + kit.product_bound(h, b.T, 4.0) + (rank + 2) * 2.0**-24 * np.abs(before)
    kit.close(y, before + added, bound)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_backward(kit, shape, accumulate):
    tokens, n, k, rank = shape
    scale = 1.5
    x, dy, a, b = kit.normal(tokens, k), kit.normal(tokens, n), kit.normal(rank, k), kit.normal(n, rank)
    before = kit.normal(rank, k), kit.normal(n, rank), kit.normal(tokens, k)
    h = reference.lora_forward(x, a, b, scale)[1].astype(np.float32)

    def call():
        da, db = (before[0].copy(), before[1].copy()) if accumulate else (kit.nans(rank, k), kit.nans(n, rank))
        dx, dh = before[2].copy() if accumulate else kit.nans(tokens, k), kit.nans(tokens, rank)
        lora_b_backward(db, dh, dy, h, b, scale, accumulate)
        lora_a_backward(da, dh, x, accumulate)
        lora_a_backward_input(dx, dh, a, accumulate)
        return da, db, dx

    da, db, dx = kit.same_on_all_thread_counts(call)
    want_da, want_db, want_dx = reference.lora_backward(dy, x, a, b, scale)
    old = before if accumulate else (0.0, 0.0, 0.0)
    # Two chained products of at most n + tokens (or n + rank) rounding steps each on sums of this size.
    steps = (n + tokens + rank + 8) * 2.0**-24
    size_dh = scale * np.abs(dy) @ np.abs(b)
    kit.close(da, want_da + old[0], steps * (size_dh.T @ np.abs(x) + np.abs(old[0])))
    kit.close(db, want_db + old[1], steps * (scale * np.abs(dy).T @ (np.abs(x) @ np.abs(a).T) + np.abs(old[1])))
    kit.close(dx, want_dx + old[2], steps * (size_dh @ np.abs(a) + np.abs(old[2])))


def test_a_row_does_not_depend_on_the_other_rows(kit):
    x, a, b = kit.normal(7, 50), kit.normal(8, 50), kit.normal(30, 8)
    results = []
    for rows in (7, 3):
        y, h = np.zeros((rows, 30), np.float32), kit.nans(rows, 8)
        lora_a_forward(h, x[:rows], a)
        lora_b_forward(y, h, b, 2.0)
        results.append((y, h))
    kit.same_bits(results[0][0][:3], results[1][0])
    kit.same_bits(results[0][1][:3], results[1][1])
