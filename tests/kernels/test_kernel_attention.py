import numpy as np
import pytest

import reference
from memsim_kernels import attention_backward, attention_forward

# (T, NH, NKV, D), scale, window, causal. One token, odd lengths, more than one tile of 64, grouped and not, head sizes
# off the vector width and those of real models; a scale that is not 1 / sqrt(D); windows of one key, inside a tile, of
# a tile, across tiles, and beyond T.
CASES = [
    ((1, 1, 1, 8), 0.35, 0, True),
    ((5, 4, 2, 4), 0.5, 0, True),
    ((13, 6, 2, 20), 0.22, 0, True),
    ((64, 2, 1, 16), 0.25, 0, True),
    ((67, 3, 3, 8), 1.0, 0, True),
    ((130, 2, 1, 8), 0.35, 0, True),
    ((131, 7, 1, 64), 0.125, 0, True),
    ((70, 2, 2, 80), 0.11, 0, True),
    ((129, 3, 1, 128), 0.09, 0, True),
    ((75, 4, 1, 256), 0.0625, 0, True),
    ((67, 2, 1, 8), 0.35, 1, True),
    ((150, 4, 2, 16), 0.25, 5, True),
    ((257, 2, 1, 8), 0.35, 64, True),
    ((200, 2, 1, 8), 0.35, 65, True),
    ((261, 3, 1, 256), 0.0625, 100, True),
    ((131, 2, 1, 8), 0.35, 500, True),
    ((1, 2, 1, 8), 0.35, 0, False),
    ((13, 6, 2, 20), 0.22, 0, False),
    ((197, 3, 3, 64), 0.125, 0, False),
]
NAMES = [
    f"{shape}-scale{scale}-window{window}-{'causal' if causal else 'all'}" for shape, scale, window, causal in CASES
]
cases = pytest.mark.parametrize(("shape", "scale", "window", "causal"), CASES, ids=NAMES)
# Scores are sums of D products, then exp, sums over T and a division: some tens of roundings of values near 1.
TOLERANCE = 2e-5


def _inputs(kit, shape):
    tokens, n_heads, n_kv_heads, size = shape
    q, do = kit.normal(tokens, n_heads * size), kit.normal(tokens, n_heads * size)
    return q, kit.normal(tokens, n_kv_heads * size), kit.normal(tokens, n_kv_heads * size), do


def _forward(kit, q, k, v, *attrs):
    o, lse = kit.nans(*q.shape), kit.nans(attrs[0], len(q))
    attention_forward(o, lse, q, k, v, *attrs)
    return o, lse


def _backward(kit, do, q, k, v, o, lse, *attrs):
    grads = [kit.nans(*q.shape), kit.nans(*k.shape), kit.nans(*v.shape)]
    attention_backward(*grads, kit.nans(*lse.shape), do, q, k, v, o, lse, *attrs)
    return tuple(grads)


@cases
def test_forward(kit, shape, scale, window, causal):
    q, k, v, _ = _inputs(kit, shape)
    attrs = (*shape[1:3], scale, window, causal)
    o, lse = kit.same_on_all_thread_counts(lambda: _forward(kit, q, k, v, *attrs))
    want, want_lse = reference.attention_forward(q, k, v, *attrs)
    kit.close(o, want, TOLERANCE)
    kit.close(lse, want_lse, TOLERANCE)


@cases
def test_backward(kit, shape, scale, window, causal):
    q, k, v, do = _inputs(kit, shape)
    attrs = (*shape[1:3], scale, window, causal)
    o, lse = _forward(kit, q, k, v, *attrs)
    got = kit.same_on_all_thread_counts(lambda: _backward(kit, do, q, k, v, o, lse, *attrs))
    for grad, want in zip(got, reference.attention_backward(do, q, k, v, *attrs), strict=True):
        kit.close(grad, want, TOLERANCE * max(1.0, np.max(np.abs(want))))


def test_large_scores_do_not_overflow(kit):
    q, k, v, _ = _inputs(kit, (70, 2, 1, 16))
    q, k = q * np.float32(40.0), k * np.float32(40.0)  # scores of several thousand
    o, lse = _forward(kit, q, k, v, 2, 1, 0.25, 0, True)
    want, want_lse = reference.attention_forward(q, k, v, 2, 1, 0.25)
    # A score of size S is off by S * 2^-24 * a few, and the softmax turns that into a relative error.
    bound = 20.0 * 2.0**-24 * np.max(np.abs(want_lse))
    kit.close(o, want, bound)
    kit.close(lse, want_lse, bound)


@pytest.mark.parametrize("window", [0, 66])
def test_the_past_does_not_depend_on_the_future(kit, window):
    """The first rows of a longer sequence have the bits of the shorter one, across a tile border too."""
    attrs = (4, 2, 0.35, window, True)
    q, k, v, do = _inputs(kit, (70, 4, 2, 8))
    full, lse = _forward(kit, q, k, v, *attrs)
    full_dq = _backward(kit, do, q, k, v, full, lse, *attrs)[0]
    for tokens in (1, 3, 7, 64, 66):
        part, part_lse = _forward(kit, q[:tokens], k[:tokens], v[:tokens], *attrs)
        kit.same_bits(part, full[:tokens])
        kit.same_bits(part_lse, np.ascontiguousarray(lse[:, :tokens]))
        dq, _, _ = _backward(kit, do[:tokens], q[:tokens], k[:tokens], v[:tokens], part, part_lse, *attrs)
        kit.same_bits(dq, full_dq[:tokens])


def test_tiles_outside_the_window_are_not_read(kit):
    """What lies beyond the window by a tile or more cannot matter: not even NaN, which any product would carry on."""
    attrs = (2, 1, 0.35, 20, True)
    q, k, v, do = _inputs(kit, (300, 2, 1, 8))
    o, lse = _forward(kit, q, k, v, *attrs)
    dq, dk, dv = _backward(kit, do, q, k, v, o, lse, *attrs)
    k[:64], v[:64], q[:64], do[:64] = (np.nan,) * 4
    late, late_lse = _forward(kit, q, k, v, *attrs)
    kit.same_bits(late[128:], o[128:])
    late_dq, late_dk, late_dv = _backward(kit, do, q, k, v, late, late_lse, *attrs)
    for got, want in ((late_dq, dq), (late_dk, dk), (late_dv, dv)):
        kit.same_bits(got[128:], want[128:])
