import numpy as np
import pytest

import reference
from memsim_kernels import attention_backward, attention_forward

# T, NH, NKV, D: one token, odd lengths, more than one tile of 64, grouped and not, head sizes off the vector width.
SHAPES = [(1, 1, 1, 8), (5, 4, 2, 4), (13, 6, 2, 20), (64, 2, 1, 16), (67, 3, 3, 8), (130, 2, 1, 8)]
# Scores are sums of D products, then exp, sums over T and a division: some tens of roundings of values near 1.
TOLERANCE = 2e-5


def _inputs(kit, shape):
    tokens, n_heads, n_kv_heads, size = shape
    q, do = kit.normal(tokens, n_heads * size), kit.normal(tokens, n_heads * size)
    return q, kit.normal(tokens, n_kv_heads * size), kit.normal(tokens, n_kv_heads * size), do


@pytest.mark.parametrize("shape", SHAPES)
def test_forward(kit, shape):
    tokens, n_heads, n_kv_heads, _ = shape
    q, k, v, _ = _inputs(kit, shape)

    def call():
        o, lse = kit.nans(*q.shape), kit.nans(n_heads, tokens)
        attention_forward(o, lse, q, k, v, n_heads, n_kv_heads)
        return o, lse

    o, lse = kit.same_on_all_thread_counts(call)
    want, want_lse = reference.attention_forward(q, k, v, n_heads, n_kv_heads)
    kit.close(o, want, TOLERANCE)
    kit.close(lse, want_lse, TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_backward(kit, shape):
    tokens, n_heads, n_kv_heads, _ = shape
    q, k, v, do = _inputs(kit, shape)
    o, lse = kit.nans(*q.shape), kit.nans(n_heads, tokens)
    attention_forward(o, lse, q, k, v, n_heads, n_kv_heads)

    def call():
        dq, dk, dv, delta = kit.nans(*q.shape), kit.nans(*k.shape), kit.nans(*v.shape), kit.nans(n_heads, tokens)
        attention_backward(dq, dk, dv, delta, do, q, k, v, o, lse, n_heads, n_kv_heads)
        return dq, dk, dv, delta

    got = kit.same_on_all_thread_counts(call)
    for name, grad, want in zip(
        "qkv", got, reference.attention_backward(do, q, k, v, n_heads, n_kv_heads), strict=False
    ):
        assert np.max(np.abs(grad - want)) <= TOLERANCE * max(1.0, np.max(np.abs(want))), f"d{name}"
        assert not np.any(np.isnan(grad))


def test_large_scores_do_not_overflow(kit):
    q, k, v, _ = _inputs(kit, (70, 2, 1, 16))
    q, k = q * np.float32(40.0), k * np.float32(40.0)  # scores of several thousand
    o, lse = kit.nans(*q.shape), kit.nans(2, 70)
    attention_forward(o, lse, q, k, v, 2, 1)
    want, want_lse = reference.attention_forward(q, k, v, 2, 1)
    # A score of size S is off by S * 2^-24 * a few, and the softmax turns that into a relative error.
    bound = 20.0 * 2.0**-24 * np.max(np.abs(want_lse))
    kit.close(o, want, bound)
    kit.close(lse, want_lse, bound)


def test_the_past_does_not_depend_on_the_future(kit):
    """The first rows of a longer sequence have the bits of the shorter one, across a tile border too."""
    n_heads, n_kv_heads, size = 4, 2, 8
    q, k, v, do = _inputs(kit, (70, n_heads, n_kv_heads, size))
    full, lse = kit.nans(*q.shape), kit.nans(n_heads, 70)
    attention_forward(full, lse, q, k, v, n_heads, n_kv_heads)
    grads = [kit.nans(*q.shape), kit.nans(*k.shape), kit.nans(*v.shape)]
    attention_backward(*grads, np.empty_like(lse), do, q, k, v, full, lse, n_heads, n_kv_heads)
    for tokens in (1, 3, 7, 64, 66):
        part, part_lse = kit.nans(tokens, q.shape[1]), kit.nans(n_heads, tokens)
        attention_forward(part, part_lse, q[:tokens], k[:tokens], v[:tokens], n_heads, n_kv_heads)
        kit.same_bits(part, full[:tokens])
        kit.same_bits(part_lse, np.ascontiguousarray(lse[:, :tokens]))
        dq, dk, dv = kit.nans(tokens, q.shape[1]), kit.nans(tokens, k.shape[1]), kit.nans(tokens, k.shape[1])
        attention_backward(
            dq, dk, dv, np.empty_like(part_lse), do[:tokens], q[:tokens], k[:tokens], v[:tokens],
            part, part_lse, n_heads, n_kv_heads,
        )  # fmt: skip
        kit.same_bits(dq, grads[0][:tokens])
