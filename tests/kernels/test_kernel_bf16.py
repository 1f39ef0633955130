import numpy as np
import pytest

import reference
from memsim_kernels import cpu

if not cpu.HAS_AVX512_BF16:
    pytest.skip("this processor has no avx512_bf16", allow_module_level=True)

from memsim_kernels.lora import NO_ADAPTER, Adapter
from memsim_kernels.q4_bf16 import linear_q4_backward_input_bf16, linear_q4_forward_bf16, workspace_floats

NO_BIAS = np.empty(0, np.float32)
AMX = pytest.param(True, marks=pytest.mark.skipif(not cpu.HAS_AMX, reason="this processor has no AMX"))
ENGINES = pytest.mark.parametrize("amx", [AMX, False])
# Odd rows, one row block and two, edges in N and K, both group sizes, reductions longer than a panel is deep.
SHAPES = [
    (1, 16, 32, 32), (3, 40, 64, 32), (7, 130, 96, 32), (13, 70, 200, 64), (33, 64, 320, 64), (2, 5, 40, 32),
    (17, 48, 1100, 32), (40, 1100, 64, 64), (260, 33, 70, 32),
    (7, 130, 96, 32, "affine"), (13, 70, 200, 64, "affine"), (33, 64, 320, 128, "affine"),
    (17, 48, 1100, 32, "symmetric8"),
]  # fmt: skip


def rounded(x):
    """Round to bf16, to nearest even."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


def workspace(rows, depth, rank):
    return np.full(workspace_floats(rows, depth, 2, rank), np.nan, np.float32)


def forward(kit, x, q, scales, bias, group_size, n, amx, adapter=NO_ADAPTER):
    y = kit.nans(x.shape[0], n)
    work = workspace(*x.shape, len(adapter.a))
    linear_q4_forward_bf16(y, x, q, scales, bias, group_size, work, adapter, amx)
    return y


def backward(dx, dy, q, scales, group_size, accumulate, amx, adapter=NO_ADAPTER):
    work = workspace(*dy.shape, len(adapter.a))
    linear_q4_backward_input_bf16(dx, dy, q, scales, group_size, accumulate, work, adapter, amx)
    return dx


@ENGINES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_forward_is_the_product_of_rounded_matrices(kit, shape, has_bias, amx):
    tokens, n, k, group_size, *form = shape
    q, scales, matrix = kit.packed(n, k, group_size, *form)
    x, bias = kit.frozen(tokens, k), kit.frozen(n) if has_bias else NO_BIAS
    (y,) = kit.same_on_all_thread_counts(lambda: (forward(kit, x, q, scales, bias, group_size, n, amx),))
    w = rounded(matrix)
    want = reference.linear_forward(rounded(x), w, bias if has_bias else None)
    kit.close(y, want, kit.product_bound(rounded(x), w.T) + (k + 2) * 2.0**-24 * (5.0 if has_bias else 0.0))


@ENGINES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_backward_is_the_product_of_rounded_matrices(kit, shape, accumulate, amx):
    tokens, n, k, group_size, *form = shape
    q, scales, matrix = kit.packed(n, k, group_size, *form)
    dy, before = kit.frozen(tokens, n), kit.normal(tokens, k)

    def call():
        dx = before.copy() if accumulate else kit.nans(tokens, k)
        return (backward(dx, dy, q, scales, group_size, accumulate, amx),)

    (dx,) = kit.same_on_all_thread_counts(call)
    w = rounded(matrix)
    want = reference.linear_backward_input(rounded(dy), w) + (before if accumulate else 0.0)
    # Every step of the chain rounds a value of at most |before| + sum |dy w|.
    kit.close(dx, want, kit.product_bound(rounded(dy), w) + ((n + 2) * 2.0**-24 * np.abs(before) if accumulate else 0))


# The reduction has room for a rank of 32 beside 1,024 columns; longer ones, and ranks, go through in several parts.
RANKS = [(5, 40, 64, 1), (19, 70, 96, 8), (33, 48, 1024, 32), (2, 130, 1040, 33), (260, 33, 70, 3), (3, 20, 40, 1100)]


@ENGINES
@pytest.mark.parametrize("shape", RANKS)
def test_an_adapter_makes_the_reduction_longer(kit, shape, amx):
    tokens, n, k, rank = shape
    scale = 0.75
    q, scales, matrix = kit.packed(n, k, 32)
    w = rounded(matrix)
    x, dy, bias, before = kit.frozen(tokens, k), kit.frozen(tokens, n), kit.frozen(n), kit.normal(tokens, k)
    adapter = Adapter(kit.normal(rank, k), kit.normal(n, rank), scale)
    a, b = rounded(scale * adapter.a), rounded(adapter.b)

    def call():
        y = forward(kit, x, q, scales, bias, 32, n, amx, adapter)
        return y, backward(before.copy(), dy, q, scales, 32, True, amx, adapter)

    y, dx = kit.same_on_all_thread_counts(call)
    # h is rounded to bf16, by 2^-8 of its size at most, which carries over; its own error may take it to the next bf16.
    h, size_h = rounded(x) @ a.T, np.abs(rounded(x)) @ np.abs(a.T)
    bound = kit.product_bound(rounded(x), w.T) + (2.0**-8 * np.abs(h) + 2.0**-16 * size_h) @ np.abs(b.T) + 1e-5
    kit.close(y, rounded(x) @ w.T + h @ b.T + bias, bound + (k + rank) * 2.0**-23 * size_h @ np.abs(b.T))
    a, b = rounded(adapter.a), rounded(scale * adapter.b)
    dh, size_dh = rounded(dy) @ b, np.abs(rounded(dy)) @ np.abs(b)
    bound = kit.product_bound(rounded(dy), w) + (2.0**-8 * np.abs(dh) + 2.0**-16 * size_dh) @ np.abs(a)
    bound += (n + rank) * 2.0**-23 * (size_dh @ np.abs(a) + np.abs(before))
    kit.close(dx, rounded(dy) @ w + dh @ a + before, bound)


@ENGINES
def test_weights_are_rounded_to_nearest_even(kit, amx):
    """A row of the identity takes single weights out, so the product shows them."""
    q, scales, matrix = kit.packed(48, 64, 32)
    eye = np.eye(64, dtype=np.float32)
    y = forward(kit, eye, q, scales, NO_BIAS, 32, 48, amx)
    assert np.array_equal(y.T.astype(np.float64), rounded(matrix))
    dx = backward(kit.nans(48, 64), eye[:48, :48].copy(), q, scales, 32, False, amx)
    assert np.array_equal(dx.astype(np.float64), rounded(matrix))


@ENGINES
def test_a_row_does_not_depend_on_the_other_rows(kit, amx):
    n, k, group_size = 70, 1100, 32
    q, scales, _ = kit.packed(n, k, group_size)
    x, dy, before = kit.normal(270, k), kit.normal(270, n), kit.normal(270, k)
    y = forward(kit, x, q, scales, NO_BIAS, group_size, n, amx)
    dx = backward(before.copy(), dy, q, scales, group_size, True, amx)
    for rows in (1, 2, 15, 16, 17, 33, 100):
        kit.same_bits(forward(kit, x[-rows:].copy(), q, scales, NO_BIAS, group_size, n, amx), y[-rows:])
        kit.same_bits(backward(before[-rows:].copy(), dy[-rows:].copy(), q, scales, group_size, True, amx), dx[-rows:])


@ENGINES
@pytest.mark.parametrize("rank", [0, 8, 40])
def test_bits_do_not_depend_on_addresses_and_nothing_else_is_written(kit, rank, amx):
    tokens, n, k = 21, 70, 150
    q, scales, _ = kit.packed(n, k, 32)
    adapter = Adapter(kit.normal(rank, k), kit.normal(n, rank), 2.0)
    x = kit.normal(tokens, k)
    results = []
    for shift in (0, 1, 5):
        place = np.full(tokens * n + 64, np.nan, np.float32)
        y = place[shift : shift + tokens * n].reshape(tokens, n)
        moved = np.empty(tokens * k + 16, np.float32)[shift : shift + tokens * k].reshape(tokens, k)
        moved[:] = x
        size = workspace_floats(tokens, k, 2, rank)
        work = np.full(size + 64, 7.0, np.float32)
        linear_q4_forward_bf16(y, moved, q, scales, NO_BIAS, 32, work[shift : shift + size], adapter, amx)
        assert np.all(np.isnan(place[tokens * n + shift :])), "wrote beyond the output"
        assert np.all(np.isnan(place[:shift])), "wrote before the output"
        assert np.all(work[size + shift :] == 7.0), "wrote beyond the workspace"
        assert np.all(work[:shift] == 7.0), "wrote before the workspace"
        results.append(y.copy())
    kit.same_bits(results[0], results[1])
    kit.same_bits(results[0], results[2])


def test_features_come_fastest_first():
    assert cpu.engines()[-1] == cpu.F32
    assert (cpu.AMX in cpu.engines()) == cpu.HAS_AMX
