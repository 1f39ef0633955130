from math import erf, pi, sqrt

import numpy as np
import pytest

from memsim_kernels import gelu_backward, gelu_forward, relu_backward, relu_forward

SHAPES = [(1, 1), (3, 40), (7, 300), (2, 2049)]


def gelu(x):
    """Return GELU and its slope in float64."""
    half = 0.5 * (1.0 + np.array([erf(value / sqrt(2.0)) for value in x.reshape(-1)]).reshape(x.shape))
    return x * half, half + x * np.exp(-0.5 * x**2) / sqrt(2.0 * pi)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_relu(kit, shape, in_place):
    x, dy = kit.normal(*shape), kit.normal(*shape)

    def call():
        source, gradient = x.copy(), dy.copy()
        dx = gradient if in_place else kit.nans(*shape)
        relu_backward(dx, gradient, source)
        y = source if in_place else kit.nans(*shape)
        relu_forward(y, source)
        return y, dx

    y, dx = kit.same_on_all_thread_counts(call)
    kit.same_bits(y, np.where(x > 0, x, np.float32(0)))
    kit.same_bits(dx, np.where(x > 0, dy, np.float32(0)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_gelu(kit, shape, in_place):
    x, dy = kit.normal(*shape) * 3, kit.normal(*shape)

    def call():
        source, gradient = x.copy(), dy.copy()
        dx = gradient if in_place else kit.nans(*shape)
        gelu_backward(dx, gradient, source)
        y = source if in_place else kit.nans(*shape)
        gelu_forward(y, source)
        return y, dx

    y, dx = kit.same_on_all_thread_counts(call)
    want, slope = gelu(x.astype(np.float64))
    # Far below zero 1 + erf cancels in the reference; its terms are of size |x|.
    kit.close(y, want, 1e-6 * np.abs(want) + 1e-15 * np.abs(x) + 5e-8 * np.abs(want) * np.abs(x) ** 2)
    kit.close(dx, dy * slope, 1e-6 * np.abs(dy) * (1.0 + np.abs(x)))


def test_gelu_at_the_ends_of_the_range():
    x = np.array([[-3.0e38, -120.0, -0.0, 0.0, 120.0, 3.0e38]], np.float32)
    y, dx = np.empty_like(x), np.empty_like(x)
    gelu_forward(y, x)
    gelu_backward(dx, np.ones_like(x), x)
    assert np.allclose(y, [[0.0, 0.0, 0.0, 0.0, 120.0, 3.0e38]], rtol=1e-6, atol=1e-30)
    assert np.allclose(dx, [[0.0, 0.0, 0.5, 0.5, 1.0, 1.0]], rtol=1e-6, atol=1e-30)
