import math

import numpy as np
import pytest

import reference
from memsim_kernels import gelu_backward, gelu_forward

SHAPES = [(1, 1), (3, 40), (2, 2049)]
# Phi is right to a few 1e-7 of itself, and its exponent x^2 / 2 (18 here) counts by its size.
TOLERANCE = 3e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_forward(kit, shape, in_place):
    x = kit.normal(*shape) * 2

    def call():
        own = x.copy()
        y = own if in_place else kit.nans(*shape)
        gelu_forward(y, own)
        return (y,)

    (y,) = kit.same_on_all_thread_counts(call)
    want = reference.gelu_forward(x)
    kit.close(y, want, TOLERANCE * np.abs(want))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alias", ["none", "dy", "x"])
def test_backward(kit, shape, alias):
    x, dy = kit.normal(*shape) * 2, kit.normal(*shape)

    def call():
        own, grad = x.copy(), dy.copy()
        dx = {"none": kit.nans(*shape), "dy": grad, "x": own}[alias]
        gelu_backward(dx, grad, own)
        return (dx,)

    (dx,) = kit.same_on_all_thread_counts(call)
    # The slope is the sum of two terms, which cancel near x = -0.75.
    kit.close(dx, reference.gelu_backward(dy, x), 1e-6 * np.abs(dy) * (1.0 + np.abs(x)))


def test_the_whole_range_against_the_error_function():
    x = np.linspace(-6.0, 6.0, 4001, dtype=np.float32)[None]
    y = np.empty_like(x)
    gelu_forward(y, x)
    want = np.array([[v * 0.5 * math.erfc(-v / math.sqrt(2.0)) for v in x[0].astype(np.float64)]])
    assert np.max(np.abs(y - want)) < 1e-6
    inside = np.abs(x) < 4
    assert np.max(np.abs((y - want)[inside] / np.where(want == 0, 1, want)[inside])) < TOLERANCE


def test_the_ends_of_the_range():
    x = np.array([[-3.0e38, -90.0, -14.0, -0.0, 0.0, 14.0, 3.0e38]], np.float32)
    y, dx = np.empty_like(x), np.empty_like(x)
    gelu_forward(y, x)
    gelu_backward(dx, np.ones_like(x), x)
    assert np.allclose(y, [[0.0, 0.0, 0.0, 0.0, 0.0, 14.0, 3.0e38]], rtol=1e-6, atol=1e-30)
    assert np.allclose(dx, [[0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0]], rtol=1e-6, atol=1e-30)


def test_nan_stays_nan():
    x = np.array([[np.nan]], np.float32)
    y, dx = np.zeros_like(x), np.zeros_like(x)
    gelu_forward(y, x)
    gelu_backward(dx, np.ones_like(x), x)
    assert np.isnan(y[0, 0])
    assert np.isnan(dx[0, 0])


def test_it_is_the_exact_form_of_torch(kit):
    torch = pytest.importorskip("torch")
    x = kit.normal(3, 50) * 3
    y = kit.nans(3, 50)
    gelu_forward(y, x)
    want = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    kit.close(y, want.astype(np.float64), 2e-6)
