import numpy as np
import pytest

import reference
from memsim_kernels import (
    layernorm_backward_input,
    layernorm_forward,
    rmsnorm_backward_input,
    rmsnorm_forward,
    rope_backward,
    rope_forward,
)

NORM_SHAPES = [(1, 1), (3, 24), (7, 64), (35, 100), (2, 896)]
# Rounding: about ten operations per element on values near 1, and lane sums whose error grows with their length / 64.
NORM_TOLERANCE = 5e-6


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_rmsnorm_forward(kit, shape):
    x, weight = kit.normal(*shape), kit.frozen(shape[1])

    def call():
        y, rstd = kit.nans(*shape), kit.nans(shape[0])
        rmsnorm_forward(y, rstd, x, weight, 1e-6)
        return y, rstd

    y, rstd = kit.same_on_all_thread_counts(call)
    want, want_rstd = reference.rmsnorm_forward(x, weight, 1e-6)
    kit.close(y, want, NORM_TOLERANCE * np.abs(want))
    kit.close(rstd, want_rstd, NORM_TOLERANCE * want_rstd)


@pytest.mark.parametrize("shape", NORM_SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_rmsnorm_backward_input(kit, shape, accumulate):
    x, dy, before, weight = kit.normal(*shape), kit.normal(*shape), kit.normal(*shape), kit.frozen(shape[1])
    rstd = reference.rmsnorm_forward(x, weight, 1e-6)[1].astype(np.float32)

    def call():
        dx = before.copy() if accumulate else kit.nans(*shape)
        rmsnorm_backward_input(dx, dy, x, rstd, weight, accumulate)
        return (dx,)

    (dx,) = kit.same_on_all_thread_counts(call)
    want = reference.rmsnorm_backward_input(dy, x, weight, 1e-6) + (before if accumulate else 0.0)
    scale = np.max(np.abs(weight * dy) * rstd[:, None], axis=1, keepdims=True) + np.abs(want)
    kit.close(dx, want, NORM_TOLERANCE * scale)


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_layernorm_forward(kit, shape):
    x, weight, bias = kit.normal(*shape) + 3.0, kit.frozen(shape[1]), kit.frozen(shape[1])

    def call():
        y, mean, rstd = kit.nans(*shape), kit.nans(shape[0]), kit.nans(shape[0])
        layernorm_forward(y, mean, rstd, x, weight, bias, 1e-5)
        return y, mean, rstd

    y, mean, rstd = kit.same_on_all_thread_counts(call)
    want, want_mean, want_rstd = reference.layernorm_forward(x, weight, bias, 1e-5)
    kit.close(mean, want_mean, NORM_TOLERANCE * np.abs(want_mean))
    # A row of one column has no variance: rstd is then 1 / sqrt(eps).
    kit.close(rstd, want_rstd, NORM_TOLERANCE * want_rstd)
    # x - mean cancels: an error of the mean, relative to |x| near 3, is scaled by weight and rstd.
    kit.close(y, want, NORM_TOLERANCE * (np.abs(want) + np.abs(weight) * want_rstd[:, None] + np.abs(bias)))


@pytest.mark.parametrize("shape", NORM_SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_layernorm_backward_input(kit, shape, accumulate):
    x, dy, before, weight = kit.normal(*shape), kit.normal(*shape), kit.normal(*shape), kit.frozen(shape[1])
    _, mean, rstd = reference.layernorm_forward(x, weight, weight, 1e-5)

    def call():
        dx = before.copy() if accumulate else kit.nans(*shape)
        layernorm_backward_input(dx, dy, x, mean.astype(np.float32), rstd.astype(np.float32), weight, accumulate)
        return (dx,)

    (dx,) = kit.same_on_all_thread_counts(call)
    want = reference.layernorm_backward_input(dy, x, weight, 1e-5) + (before if accumulate else 0.0)
    scale = np.max(np.abs(weight * dy) * rstd[:, None], axis=1, keepdims=True) + np.abs(want)
    kit.close(dx, want, NORM_TOLERANCE * scale)


def test_layernorm_is_that_of_torch(kit):
    torch = pytest.importorskip("torch")
    x, dy, weight, bias = kit.normal(4, 50), kit.normal(4, 50), kit.normal(50), kit.normal(50)
    y, mean, rstd, dx = kit.nans(4, 50), kit.nans(4), kit.nans(4), kit.nans(4, 50)
    layernorm_forward(y, mean, rstd, x, weight, bias, 1e-5)
    layernorm_backward_input(dx, dy, x, mean, rstd, weight, False)
    theirs = torch.from_numpy(x).requires_grad_()
    want = torch.nn.functional.layer_norm(theirs, (50,), torch.from_numpy(weight), torch.from_numpy(bias), 1e-5)
    want.backward(torch.from_numpy(dy))
    kit.close(y, want.detach().numpy().astype(np.float64), 1e-5)
    kit.close(dx, theirs.grad.numpy().astype(np.float64), 1e-5)


def test_a_normalised_row_does_not_depend_on_the_other_rows(kit):
    x, weight = kit.normal(7, 70), kit.normal(70)
    full, part, rstd = kit.nans(7, 70), kit.nans(3, 70), kit.nans(7)
    rmsnorm_forward(full, rstd, x, weight, 1e-5)
    rmsnorm_forward(part, rstd[:3], x[:3], weight, 1e-5)
    kit.same_bits(full[:3], part)


@pytest.mark.parametrize(("tokens", "n_heads", "head_dim"), [(1, 1, 2), (3, 4, 8), (7, 2, 64), (20, 3, 10)])
@pytest.mark.parametrize("in_place", [False, True])
def test_rope(kit, tokens, n_heads, head_dim, in_place):
    x = kit.normal(tokens, n_heads * head_dim)
    angles = kit.rng.uniform(0.0, 6.0, (tokens, head_dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def call():
        forward, backward = (x.copy(), x.copy()) if in_place else (kit.nans(*x.shape), kit.nans(*x.shape))
        rope_forward(forward, forward if in_place else x, cos, sin, n_heads)
        rope_backward(backward, backward if in_place else x, cos, sin, n_heads)
        return forward, backward

    forward, backward = kit.same_on_all_thread_counts(call)
    bound = 4 * 2.0**-24 * 2.0 * np.max(np.abs(x))  # three roundings of values of at most 2 max |x|
    kit.close(forward, reference.rope_forward(x, cos, sin, n_heads), bound)
    kit.close(backward, reference.rope_backward(x, cos, sin, n_heads), bound)


def test_rope_is_the_half_split_rotation_of_hugging_face(kit):
    torch = pytest.importorskip("torch")
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    tokens, n_heads, head_dim = 5, 2, 8
    x = kit.normal(tokens, n_heads * head_dim)
    angles = np.outer(np.arange(tokens), 1.0 / 10000.0 ** (np.arange(0, head_dim, 2) / head_dim))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    heads = torch.from_numpy(x).reshape(1, tokens, n_heads, head_dim).transpose(1, 2)
    full_cos, full_sin = (torch.from_numpy(np.concatenate([table, table], 1))[None] for table in (cos, sin))
    want, _ = apply_rotary_pos_emb(heads, heads, full_cos, full_sin)
    y = kit.nans(*x.shape)
    rope_forward(y, x, cos, sin, n_heads)
    kit.close(y, want.transpose(1, 2).reshape(tokens, -1).numpy().astype(np.float64), 1e-6)
