"""Slow, obvious float64 references of every op, written from the equations; T tokens, shapes as in memsim_kernels.

Every function takes any numeric arrays and returns new float64 arrays.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
IGNORED = 0xFFFFFFFF


def f64(x: ArrayLike) -> F64:
    return np.asarray(x, dtype=np.float64)


def unpack_q4(q: NDArray[np.uint32], scales: NDArray[np.float16], n_rows: int, n_columns: int, group_size: int) -> F64:
    w = np.zeros((n_rows, n_columns))
    for n in range(n_rows):
        for k in range(n_columns):
            nibble = (int(q[n // 16, k // 8, n % 16]) >> (4 * (k % 8))) & 15
            w[n, k] = (nibble - 16 if nibble >= 8 else nibble) * float(scales[k // group_size, n])
    return w


def pack_q4(
    values: NDArray[np.int64], scales: ArrayLike, group_size: int, bits: int = 4, offsets: ArrayLike | None = None
) -> tuple[NDArray[np.uint32], NDArray[np.float16]]:
    """Pack levels [N, K], scales [N, KG] and perhaps offsets [N, KG] into the layout of the weight files."""
    n_rows, n_columns = values.shape
    panels, groups, of_dword = -(-n_rows // 16), -(-n_columns // group_size), 32 // bits
    q = np.zeros((panels, groups * group_size // of_dword, 16), np.uint32)
    for n in range(n_rows):
        for k in range(n_columns):
            level = (int(values[n, k]) & (2**bits - 1)) << (bits * (k % of_dword))
            q[n // 16, k // of_dword, n % 16] |= np.uint32(level)
    parts = [scales] if offsets is None else [scales, offsets]
    stored = np.zeros((groups * len(parts), 16 * panels), np.float16)
    for index, part in enumerate(parts):
        stored[index :: len(parts), :n_rows] = np.asarray(part).T
    return q, stored


def linear_forward(x: ArrayLike, w: ArrayLike, bias: ArrayLike | None = None) -> F64:
    return f64(x) @ f64(w).T + (0.0 if bias is None else f64(bias))


def linear_backward_input(dy: ArrayLike, w: ArrayLike) -> F64:
    return f64(dy) @ f64(w)


def lora_forward(x: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float) -> tuple[F64, F64]:
    """Return (what is added to y, h)."""
    h = f64(x) @ f64(a).T
    return scale * h @ f64(b).T, h


def lora_backward(dy: ArrayLike, x: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float) -> tuple[F64, F64, F64]:
    """Return (da, db, what is added to dx)."""
    h = f64(x) @ f64(a).T
    dh = scale * f64(dy) @ f64(b)
    return dh.T @ f64(x), scale * f64(dy).T @ h, dh @ f64(a)


def rmsnorm_forward(x: ArrayLike, weight: ArrayLike, eps: float) -> tuple[F64, F64]:
    """Return (y, rstd)."""
    rstd = 1.0 / np.sqrt(np.mean(f64(x) ** 2, axis=1) + eps)
    return f64(weight) * f64(x) * rstd[:, None], rstd


def rmsnorm_backward_input(dy: ArrayLike, x: ArrayLike, weight: ArrayLike, eps: float) -> F64:
    _, rstd = rmsnorm_forward(x, weight, eps)
    normed = f64(x) * rstd[:, None]
    scaled = f64(dy) * f64(weight)
    return rstd[:, None] * (scaled - normed * np.mean(scaled * normed, axis=1, keepdims=True))


def layernorm_forward(x: ArrayLike, weight: ArrayLike, bias: ArrayLike, eps: float) -> tuple[F64, F64, F64]:
    """Return (y, mean, rstd)."""
    mean = f64(x).mean(axis=1)
    rstd = 1.0 / np.sqrt(f64(x).var(axis=1) + eps)
    return f64(weight) * (f64(x) - mean[:, None]) * rstd[:, None] + f64(bias), mean, rstd


def layernorm_backward_input(dy: ArrayLike, x: ArrayLike, weight: ArrayLike, eps: float) -> F64:
    normed, _, rstd = layernorm_forward(x, np.ones_like(weight), np.zeros_like(weight), eps)
    scaled = f64(dy) * f64(weight)
    centred = scaled - scaled.mean(axis=1, keepdims=True)
    return rstd[:, None] * (centred - normed * np.mean(scaled * normed, axis=1, keepdims=True))


def rope_forward(x: ArrayLike, cos: ArrayLike, sin: ArrayLike, n_heads: int) -> F64:
    tokens, features = f64(x).shape
    heads = f64(x).reshape(tokens, n_heads, features // n_heads)
    x1, x2 = np.split(heads, 2, axis=2)
    c, s = f64(cos)[:, None, :], f64(sin)[:, None, :]
    return np.concatenate([x1 * c - x2 * s, x2 * c + x1 * s], axis=2).reshape(tokens, features)


def rope_backward(dy: ArrayLike, cos: ArrayLike, sin: ArrayLike, n_heads: int) -> F64:
    return rope_forward(dy, cos, -f64(sin), n_heads)


def _attention_head(q: F64, k: F64, v: F64, scale: float, window: int, causal: bool) -> tuple[F64, F64, F64]:
    """Return (o, probabilities, lse) of one head, q, k, v [T, D]."""
    scores = scale * q @ k.T
    for t in range(len(q)):
        if causal:
            scores[t, t + 1 :] = -np.inf
        if window:
            scores[t, : max(0, t - window + 1)] = -np.inf
    largest = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - largest)
    total = weights.sum(axis=1, keepdims=True)
    return (weights / total) @ v, weights / total, (largest + np.log(total))[:, 0]


def attention_forward(
    q: ArrayLike, k: ArrayLike, v: ArrayLike,
    n_heads: int, n_kv_heads: int, scale: float, window: int = 0, causal: bool = True,
) -> tuple[F64, F64]:  # fmt: skip
    """Return (o, lse [NH, T])."""
    size, group = f64(q).shape[1] // n_heads, n_heads // n_kv_heads
    outs, lses = [], []
    for head in range(n_heads):
        own = slice(head * size, (head + 1) * size)
        shared = slice(head // group * size, (head // group + 1) * size)
        o, _, lse = _attention_head(f64(q)[:, own], f64(k)[:, shared], f64(v)[:, shared], scale, window, causal)
        outs.append(o)
        lses.append(lse)
    return np.concatenate(outs, axis=1), np.stack(lses)


def attention_backward(
    do: ArrayLike, q: ArrayLike, k: ArrayLike, v: ArrayLike,
    n_heads: int, n_kv_heads: int, scale: float, window: int = 0, causal: bool = True,
) -> tuple[F64, F64, F64]:  # fmt: skip
    """Return (dq, dk, dv)."""
    size, group = f64(q).shape[1] // n_heads, n_heads // n_kv_heads
    dq, dk, dv = np.zeros_like(f64(q)), np.zeros_like(f64(k)), np.zeros_like(f64(v))
    for head in range(n_heads):
        own = slice(head * size, (head + 1) * size)
        shared = slice(head // group * size, (head // group + 1) * size)
        dout, keys, values = f64(do)[:, own], f64(k)[:, shared], f64(v)[:, shared]
        _, p, _ = _attention_head(f64(q)[:, own], keys, values, scale, window, causal)
        dp = dout @ values.T
        ds = p * (dp - np.sum(dp * p, axis=1, keepdims=True)) * scale
        dq[:, own] = ds @ keys
        dk[:, shared] += ds.T @ f64(q)[:, own]
        dv[:, shared] += p.T @ dout
    return dq, dk, dv


def swiglu_forward(gate: ArrayLike, up: ArrayLike) -> F64:
    return f64(gate) / (1.0 + np.exp(-f64(gate))) * f64(up)


def swiglu_backward(ds: ArrayLike, gate: ArrayLike, up: ArrayLike) -> tuple[F64, F64]:
    """Return (dgate, dup)."""
    sigmoid = 1.0 / (1.0 + np.exp(-f64(gate)))
    slope = sigmoid * (1.0 + f64(gate) * (1.0 - sigmoid))
    return f64(ds) * f64(up) * slope, f64(ds) * f64(gate) * sigmoid


def geglu_forward(gate: ArrayLike, up: ArrayLike) -> F64:
    inner = np.sqrt(2.0 / np.pi) * (f64(gate) + 0.044715 * f64(gate) ** 3)
    return 0.5 * f64(gate) * (1.0 + np.tanh(inner)) * f64(up)


def geglu_backward(ds: ArrayLike, gate: ArrayLike, up: ArrayLike) -> tuple[F64, F64]:
    """Return (dgate, dup)."""
    g = f64(gate)
    tanh = np.tanh(np.sqrt(2.0 / np.pi) * (g + 0.044715 * g**3))
    inner_slope = np.sqrt(2.0 / np.pi) * (1.0 + 3.0 * 0.044715 * g**2)
    slope = 0.5 * (1.0 + tanh) + 0.5 * g * (1.0 - tanh**2) * inner_slope
    return f64(ds) * f64(up) * slope, f64(ds) * 0.5 * g * (1.0 + tanh)


def gelu_forward(x: ArrayLike) -> F64:
    return f64(x) * _distribution(f64(x))


def gelu_backward(dy: ArrayLike, x: ArrayLike) -> F64:
    density = np.exp(-0.5 * f64(x) ** 2) / np.sqrt(2.0 * np.pi)
    return f64(dy) * (_distribution(f64(x)) + f64(x) * density)


def _distribution(x: F64) -> F64:
    return np.vectorize(lambda value: 0.5 * math.erfc(-value / math.sqrt(2.0)))(x)


def cross_entropy_forward(logits: ArrayLike, labels: ArrayLike) -> tuple[F64, F64]:
    """Return (stats, lse): stats is (sum of losses, number correct, number valid)."""
    x, ids = f64(logits), np.asarray(labels)
    largest = x.max(axis=1)
    lse = largest + np.log(np.exp(x - largest[:, None]).sum(axis=1))
    stats = np.zeros(3)
    for t in np.flatnonzero(ids != IGNORED):
        stats += lse[t] - x[t, ids[t]], float(np.argmax(x[t]) == ids[t]), 1.0
    return stats, lse


def cross_entropy_backward(logits: ArrayLike, labels: ArrayLike, scale: float) -> F64:
    x, ids = f64(logits), np.asarray(labels)
    stats, lse = cross_entropy_forward(x, ids)
    dlogits = np.zeros_like(x)
    for t in np.flatnonzero(ids != IGNORED):
        dlogits[t] = np.exp(x[t] - lse[t]) * scale / stats[2]
        dlogits[t, ids[t]] -= scale / stats[2]
    return dlogits


def sgd_update(p: ArrayLike, g: ArrayLike, lr: float, weight_decay: float) -> F64:
    return f64(p) - lr * (f64(g) + weight_decay * f64(p))


def momentum_update(
    p: ArrayLike, m: ArrayLike, g: ArrayLike, lr: float, momentum: float, weight_decay: float
) -> tuple[F64, F64]:
    """Return (p, m)."""
    moment = momentum * f64(m) + f64(g) + weight_decay * f64(p)
    return f64(p) - lr * moment, moment


def adamw_update(
    p: ArrayLike, m: ArrayLike, v: ArrayLike, g: ArrayLike,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
) -> tuple[F64, F64, F64]:  # fmt: skip
    """Return (p, m, v)."""
    first = beta1 * f64(m) + (1.0 - beta1) * f64(g)
    second = beta2 * f64(v) + (1.0 - beta2) * f64(g) ** 2
    update = first / (1.0 - beta1**step) / (np.sqrt(second / (1.0 - beta2**step)) + eps)
    return f64(p) * (1.0 - lr * weight_decay) - lr * update, first, second
