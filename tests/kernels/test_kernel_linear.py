import numpy as np
import pytest

import reference
from memsim_kernels import (
    embedding_q4_forward,
    linear_backward_input,
    linear_forward,
    linear_q4_backward_input,
    linear_q4_forward,
    unpack_q4,
)

NO_BIAS = np.empty(0, np.float32)

# T, N, K: odd, tiny, below and above a tile of 16 and 64 columns, and reductions longer than a panel is deep.
SHAPES = [(1, 1, 8), (1, 64, 32), (3, 40, 48), (5, 17, 136), (7, 130, 65), (13, 96, 300), (64, 16, 24), (33, 64, 7)]
PACKED = [
    *((*shape, "symmetric") for shape in [
        (1, 16, 32, 32), (3, 40, 64, 32), (7, 130, 96, 32), (13, 70, 200, 64), (6, 64, 320, 64), (2, 5, 40, 32)
    ]),
    (3, 40, 64, 32, "affine"), (13, 70, 200, 64, "affine"), (6, 64, 320, 128, "affine"), (2, 5, 40, 128, "affine"),
    (7, 130, 96, 32, "symmetric8"), (2, 5, 40, 32, "symmetric8"),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_forward(kit, shape, has_bias):
    tokens, n, k = shape
    x, w, bias = kit.normal(tokens, k), kit.normal(n, k), kit.frozen(n) if has_bias else NO_BIAS

    def call():
        y = kit.nans(tokens, n)
        linear_forward(y, x, w, bias)
        return (y,)

    (y,) = kit.same_on_all_thread_counts(call)
    want = reference.linear_forward(x, w, bias if has_bias else None)
    kit.close(y, want, kit.product_bound(x, w.T) + np.abs(want) * 1e-7 + (2e-6 if has_bias else 0.0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_linear_backward_input(kit, shape, accumulate):
    tokens, n, k = shape
    dy, w, before = kit.normal(tokens, n), kit.normal(n, k), kit.normal(tokens, k)

    def call():
        dx = before.copy() if accumulate else kit.nans(tokens, k)
        linear_backward_input(dx, dy, w, accumulate)
        return (dx,)

    (dx,) = kit.same_on_all_thread_counts(call)
    want = reference.linear_backward_input(dy, w) + (before if accumulate else 0.0)
    # Every step of the chain rounds a value of at most |before| + sum |dy w|.
    bound = kit.product_bound(dy, w) + ((n + 2) * 2.0**-24 * np.abs(before) if accumulate else 0.0)
    kit.close(dx, want, bound)


@pytest.mark.parametrize("shape", PACKED)
def test_unpack_is_exact(kit, shape):
    _, n, k, group_size, form = shape
    q, scales, matrix = kit.packed(n, k, group_size, form)
    (w,) = kit.same_on_all_thread_counts(lambda: (_unpacked(kit, q, scales, n, k, group_size),))
    # A nibble times an 11-bit significand needs 15 bits: float32 holds it exactly.
    assert np.array_equal(w.astype(np.float64), matrix)
    if form == "symmetric":
        assert np.array_equal(reference.unpack_q4(q, scales, n, k, group_size), matrix)


@pytest.mark.parametrize("shape", PACKED)
def test_packed_forward_has_the_bits_of_the_dense_one(kit, shape):
    tokens, n, k, group_size, form = shape
    q, scales, matrix = kit.packed(n, k, group_size, form)
    x, bias, dense = kit.normal(tokens, k), kit.frozen(n), kit.nans(tokens, n)

    def call():
        y = kit.nans(tokens, n)
        linear_q4_forward(y, x, q, scales, bias, group_size)
        return (y,)

    (y,) = kit.same_on_all_thread_counts(call)
    linear_forward(dense, x, _unpacked(kit, q, scales, n, k, group_size), bias)
    kit.same_bits(y, dense)
    kit.close(y, reference.linear_forward(x, matrix, bias), kit.product_bound(x, matrix.T) + 2e-6)


@pytest.mark.parametrize("shape", PACKED)
@pytest.mark.parametrize("accumulate", [False, True])
def test_packed_backward_has_the_bits_of_the_dense_one(kit, shape, accumulate):
    tokens, n, k, group_size, form = shape
    q, scales, matrix = kit.packed(n, k, group_size, form)
    dy, before = kit.normal(tokens, n), kit.normal(tokens, k)
    dense = before.copy() if accumulate else kit.nans(tokens, k)

    def call():
        dx = before.copy() if accumulate else kit.nans(tokens, k)
        linear_q4_backward_input(dx, dy, q, scales, group_size, accumulate)
        return (dx,)

    (dx,) = kit.same_on_all_thread_counts(call)
    linear_backward_input(dense, dy, _unpacked(kit, q, scales, n, k, group_size), accumulate)
    kit.same_bits(dx, dense)
    if not accumulate:
        kit.close(dx, reference.linear_backward_input(dy, matrix), kit.product_bound(dy, matrix))


@pytest.mark.parametrize("wide", [1, 17, 150])
def test_a_row_does_not_depend_on_the_other_rows(kit, wide):
    k, group_size = 160, 32
    q, scales, _ = kit.packed(wide, k, group_size)
    x, dy = kit.normal(23, k), kit.normal(23, wide)
    full_y, full_dx = kit.nans(23, wide), kit.nans(23, k)
    linear_q4_forward(full_y, x, q, scales, NO_BIAS, group_size)
    linear_q4_backward_input(full_dx, dy, q, scales, group_size, False)
    for rows in (1, 2, 3, 5, 7, 12, 22):
        y, dx = kit.nans(rows, wide), kit.nans(rows, k)
        linear_q4_forward(y, x[-rows:].copy(), q, scales, NO_BIAS, group_size)
        linear_q4_backward_input(dx, dy[-rows:].copy(), q, scales, group_size, False)
        kit.same_bits(y, full_y[-rows:])
        kit.same_bits(dx, full_dx[-rows:])


def test_tiles_of_the_reduction_have_the_bits_of_the_whole(kit):
    """A head cut into tiles of the vocabulary adds up to the same dx, to the last bit."""
    tokens, n, k = 5, 300, 40
    dy, w, whole, tiled = kit.normal(tokens, n), kit.normal(n, k), kit.nans(tokens, k), kit.nans(tokens, k)
    linear_backward_input(whole, dy, w, False)
    for start in range(0, n, 50):
        part = slice(start, start + 50)
        linear_backward_input(tiled, dy[:, part].copy(), w[part], start > 0)
    kit.same_bits(whole, tiled)


def test_bits_do_not_depend_on_addresses(kit):
    tokens, n, k = 9, 70, 150
    x, w = kit.normal(tokens, k), kit.normal(n, k)
    results = []
    for shift in (0, 1, 5):
        place = np.full(tokens * n + 16, np.nan, np.float32)
        y = place[shift : shift + tokens * n].reshape(tokens, n)
        source = np.empty(tokens * k + 16, np.float32)
        moved = source[shift : shift + tokens * k].reshape(tokens, k)
        moved[:] = x
        linear_forward(y, moved, w, NO_BIAS)
        assert np.all(np.isnan(place[tokens * n + shift :])), "wrote beyond the output"
        assert np.all(np.isnan(place[:shift])), "wrote before the output"
        results.append(y.copy())
    kit.same_bits(results[0], results[1])
    kit.same_bits(results[0], results[2])


@pytest.mark.parametrize(
    ("group_size", "form"), [(32, "symmetric"), (64, "symmetric"), (128, "affine"), (32, "symmetric8")]
)
@pytest.mark.parametrize("scale", [1.0, 1152**0.5])
def test_embedding(kit, group_size, form, scale):
    q, scales, matrix = kit.packed(50, 100, group_size, form)
    ids = np.array([0, 49, 7, 7, 31, 16, 15], np.uint32)

    def call():
        y = kit.nans(ids.size, 100)
        embedding_q4_forward(y, ids, q, scales, group_size, scale)
        return (y,)

    (y,) = kit.same_on_all_thread_counts(call)
    assert np.array_equal(y, matrix[ids].astype(np.float32) * np.float32(scale))


def test_embedding_of_an_unknown_id_is_nan(kit):
    q, scales, _ = kit.packed(16, 32, 32)
    y = np.zeros((2, 32), np.float32)
    embedding_q4_forward(y, np.array([3, 2**31], np.uint32), q, scales, 32, 1.0)
    assert np.all(np.isfinite(y[0]))
    assert np.all(np.isnan(y[1]))


def _unpacked(kit, q, scales, n, k, group_size):
    w = kit.nans(n, k)
    unpack_q4(w, q, scales, group_size)
    return w
