import numpy as np
import pytest

import reference
from memsim_kernels import add, copy, geglu_backward, geglu_forward, swiglu_backward, swiglu_forward

SHAPES = [(1, 1), (3, 40), (7, 300), (2, 2049)]
# About ten roundings of 6e-8 each; those of GELU's exponent, which reaches -100 here, count by its size.
GATED_TOLERANCE = {"swiglu": 1e-6, "geglu": 1.5e-5}


# The slopes cancel near their zeros, so errors are relative to the terms, |ds up| (1 + |gate|). So are those of GELU
# itself below zero: the reference loses what 1 + tanh cancels.
GATED = {
    "swiglu": (swiglu_forward, swiglu_backward, reference.swiglu_forward, reference.swiglu_backward),
    "geglu": (geglu_forward, geglu_backward, reference.geglu_forward, reference.geglu_backward),
}


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_forward(kit, name, shape):
    forward, _, want_forward, _ = GATED[name]
    gate, up = kit.normal(*shape) * 8, kit.normal(*shape)

    def call():
        s = kit.nans(*shape)
        forward(s, gate, up)
        return (s,)

    (s,) = kit.same_on_all_thread_counts(call)
    want = want_forward(gate, up)
    slack = 1e-30 if name == "swiglu" else 1e-15 * np.abs(gate * up)
    kit.close(s, want, GATED_TOLERANCE[name] * np.abs(want) + slack)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_gated_backward(kit, name, shape, in_place):
    _, backward, _, want_backward = GATED[name]
    gate, up, ds = kit.normal(*shape) * 4, kit.normal(*shape), kit.normal(*shape)

    def call():
        g, u = gate.copy(), up.copy()
        dgate, dup = (g, u) if in_place else (kit.nans(*shape), kit.nans(*shape))
        backward(dgate, dup, ds, g, u)
        return dgate, dup

    dgate, dup = kit.same_on_all_thread_counts(call)
    want_gate, want_up = want_backward(ds, gate, up)
    tolerance = GATED_TOLERANCE[name]
    kit.close(dgate, want_gate, tolerance * np.abs(ds * up) * (1.0 + np.abs(gate)))
    slack = 1e-30 if name == "swiglu" else 1e-15 * np.abs(ds * gate)
    kit.close(dup, want_up, tolerance * np.abs(want_up) + slack)


@pytest.mark.parametrize("name", GATED)
def test_gated_at_the_ends_of_the_range(name):
    forward, backward = GATED[name][:2]
    gate = np.array([[-3.0e38, -120.0, -90.0, -0.0, 0.0, 90.0, 3.0e38]], np.float32)
    up, ds = np.ones_like(gate), np.ones_like(gate)
    s, dgate, dup = np.empty_like(gate), np.empty_like(gate), np.empty_like(gate)
    with np.errstate(over="ignore"):  # GELU's cube is infinite there, as it is in compiled code, which does not say so
        forward(s, gate, up)
        backward(dgate, dup, ds, gate, up)
    assert np.allclose(s, [[0.0, 0.0, 0.0, 0.0, 0.0, 90.0, 3.0e38]], rtol=1e-6, atol=1e-30)
    assert np.allclose(dgate, [[0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0]], rtol=1e-6, atol=1e-30)
    assert np.allclose(dup, s, rtol=1e-6, atol=1e-30)


def test_geglu_is_the_tanh_form_of_torch(kit):
    torch = pytest.importorskip("torch")
    gate, up = kit.normal(3, 50) * 3, kit.normal(3, 50)
    s = kit.nans(3, 50)
    geglu_forward(s, gate, up)
    want = torch.nn.functional.gelu(torch.from_numpy(gate), approximate="tanh").numpy() * up
    kit.close(s, want.astype(np.float64), 2e-6)


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
