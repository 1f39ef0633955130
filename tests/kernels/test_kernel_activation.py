import numpy as np
import pytest

import reference
from memsim_kernels import add, copy, swiglu_backward, swiglu_forward

SHAPES = [(1, 1), (3, 40), (7, 300), (2, 2049)]
TOLERANCE = 1e-6  # about ten roundings of 6e-8 each


@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu_forward(kit, shape):
    gate, up = kit.normal(*shape) * 8, kit.normal(*shape)

    def call():
        s = kit.nans(*shape)
        swiglu_forward(s, gate, up)
        return (s,)

    (s,) = kit.same_on_all_thread_counts(call)
    want = reference.swiglu_forward(gate, up)
    kit.close(s, want, TOLERANCE * np.abs(want) + 1e-30)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_swiglu_backward(kit, shape, in_place):
    gate, up, ds = kit.normal(*shape) * 4, kit.normal(*shape), kit.normal(*shape)

    def call():
        g, u = gate.copy(), up.copy()
        dgate, dup = (g, u) if in_place else (kit.nans(*shape), kit.nans(*shape))
        swiglu_backward(dgate, dup, ds, g, u)
        return dgate, dup

    dgate, dup = kit.same_on_all_thread_counts(call)
    want_gate, want_up = reference.swiglu_backward(ds, gate, up)
    # The slope of silu cancels near its zero, so its error is relative to the terms, |ds up| (1 + |gate|).
    kit.close(dgate, want_gate, TOLERANCE * np.abs(ds * up) * (1.0 + np.abs(gate)))
    kit.close(dup, want_up, TOLERANCE * np.abs(want_up) + 1e-30)


def test_swiglu_at_the_ends_of_the_range():
    gate = np.array([[-3.0e38, -120.0, -90.0, -0.0, 0.0, 90.0, 3.0e38]], np.float32)
    up, ds = np.ones_like(gate), np.ones_like(gate)
    s, dgate, dup = np.empty_like(gate), np.empty_like(gate), np.empty_like(gate)
    swiglu_forward(s, gate, up)
    swiglu_backward(dgate, dup, ds, gate, up)
    assert np.allclose(s, [[0.0, 0.0, 0.0, 0.0, 0.0, 90.0, 3.0e38]], rtol=1e-6, atol=1e-30)
    assert np.allclose(dgate, [[0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0]], rtol=1e-6, atol=1e-30)
    assert np.allclose(dup, s, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("alias", ["none", "a", "b"])
def test_add(kit, alias):
    a, b = kit.normal(7, 333), kit.normal(7, 333)

    def call():
        left, right = a.copy(), b.copy()
        y = {"none": kit.nans(7, 333), "a": left, "b": right}[alias]
        add(y, left, right)
        return (y,)

    (y,) = kit.same_on_all_thread_counts(call)
    kit.same_bits(y, a + b)


def test_copy(kit):
    """Of rows in the middle, more than one piece of them, and nothing around."""
    x = kit.normal(50, 301)

    def call():
        y = kit.nans(60, 301)
        copy(y[5:45], x[7:47])
        return (y,)

    (y,) = kit.same_on_all_thread_counts(call)
    kit.same_bits(y[5:45], x[7:47])
    assert np.isnan(y[:5]).all()
    assert np.isnan(y[45:]).all()
