import numpy as np
import pytest

from memsim_kernels import relu_backward, relu_forward

SHAPES = [(1, 1), (3, 40), (7, 300), (2, 2049)]


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
