import numpy as np
import pytest

import reference
from memsim_kernels import cpu

if not cpu.HAS_AVX512_BF16:
    pytest.skip("this processor has no avx512_bf16", allow_module_level=True)

from memsim_kernels.attention_bf16 import attention_backward_bf16, attention_forward_bf16

AMX = pytest.param(True, marks=pytest.mark.skipif(not cpu.HAS_AMX, reason="this processor has no AMX"))
ENGINES = pytest.mark.parametrize("amx", [AMX, False])
# (T, NH, NKV, D), scale, window, causal: tiles cut short and whole, one head of keys (cut into jobs) and two (not cut).
CASES = [
    ((1, 2, 1, 32), 0.18, 0, True),
    ((64, 2, 2, 64), 0.125, 0, True),
    ((131, 6, 2, 64), 0.125, 0, True),
    ((75, 4, 1, 256), 0.0625, 0, True),
    ((257, 2, 1, 96), 0.1, 64, True),
    ((197, 3, 3, 64), 0.125, 0, False),
]
cases = pytest.mark.parametrize(("shape", "scale", "window", "causal"), CASES)


def _inputs(kit, shape):
    """Return q, k, v, do of bf16 values, so that the kernel rounds nothing before it has probabilities."""
    tokens, n_heads, n_kv_heads, size = shape
    columns = (n_heads * size, n_kv_heads * size, n_kv_heads * size, n_heads * size)
    return [(kit.normal(tokens, n).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for n in columns]


def _forward(kit, q, k, v, *attrs):
    o, lse = kit.nans(*q.shape), kit.nans(attrs[0], len(q))
    attention_forward_bf16(o, lse, q, k, v, *attrs)
    return o, lse


@ENGINES
@cases
def test_forward(kit, shape, scale, window, causal, amx):
    q, k, v, _ = _inputs(kit, shape)
    attrs = (*shape[1:3], scale, window, causal)
    o, lse = kit.same_on_all_thread_counts(lambda: _forward(kit, q, k, v, *attrs, amx))
    want, want_lse = reference.attention_forward(q, k, v, *attrs)
    kit.close(lse, want_lse, 2e-5)  # scores are as exact as in float32
    # Each probability is off by 2^-8 of itself at most (half of the last of bf16's 8 bits), and so is its product.
    weighed, _ = reference.attention_forward(q, k, np.abs(v), *attrs)
    kit.close(o, want, 2.0**-8 * weighed + 2e-5)


@ENGINES
@cases
def test_backward(kit, shape, scale, window, causal, amx):
    q, k, v, do = _inputs(kit, shape)
    attrs = (*shape[1:3], scale, window, causal)
    o, lse = _forward(kit, q, k, v, *attrs, amx)

    def call():
        grads = kit.nans(*q.shape), kit.nans(*k.shape), kit.nans(*v.shape)
        attention_backward_bf16(*grads, kit.nans(*lse.shape), do, q, k, v, o, lse, *attrs, amx)
        return grads

    grads = kit.same_on_all_thread_counts(call)
    for grad, want in zip(grads, reference.attention_backward(do, q, k, v, *attrs), strict=True):
        # Probabilities and their gradients are rounded to 8 bits: at most 2^-8 of each, less when summed.
        assert np.linalg.norm(grad - want) <= 5e-3 * np.linalg.norm(want) + 1e-5
