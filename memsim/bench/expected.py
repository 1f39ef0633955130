"""What a node should compute, in float64 NumPy: the check before anything is timed.

Every function takes float64 inputs of an op and its attributes, and returns its outputs as ``opset`` lists them; None
for one that is not checked (a workspace).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Outputs = list[F64 | None]
Attrs = Mapping[str, Any]


def _norm(i: Sequence[F64], a: Attrs) -> Outputs:
    x, weight = i
    rstd = 1.0 / np.sqrt((x**2).mean(axis=1) + a["eps"])
    return [weight * x * rstd[:, None], rstd]


def _norm_backward(i: Sequence[F64], a: Attrs) -> Outputs:
    dy, x, rstd, weight = i
    normed, scaled = x * rstd[:, None], dy * weight
    return [rstd[:, None] * (scaled - normed * (scaled * normed).mean(axis=1, keepdims=True))]


def _rope(i: Sequence[F64], a: Attrs) -> Outputs:
    x, cos, sin = i
    pairs = x.reshape(len(x), a["n_heads"], 2, -1)
    turned = (pairs[:, :, 0] + 1j * pairs[:, :, 1]) * (cos + 1j * sin)[:, None]
    return [np.stack([turned.real, turned.imag], axis=2).reshape(x.shape)]


def _swiglu(i: Sequence[F64], a: Attrs) -> Outputs:
    gate, up = i
    return [gate / (1.0 + np.exp(-gate)) * up]


def _swiglu_backward(i: Sequence[F64], a: Attrs) -> Outputs:
    ds, gate, up = i
    sigmoid = 1.0 / (1.0 + np.exp(-gate))
    return [ds * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), ds * gate * sigmoid]


def _heads(x: F64, n_heads: int, shared_by: int = 1) -> F64:
    """Return x [T, heads D] as [heads, T, D], each head as often as it is shared."""
    return np.repeat(x.reshape(len(x), n_heads, -1).transpose(1, 0, 2), shared_by, axis=0)


def _flat(x: F64, shared_by: int = 1) -> F64:
    """Return x [heads, T, D] as [T, heads D], heads that shared one added up."""
    heads, n_tokens, size = x.shape
    summed: F64 = x.reshape(-1, shared_by, n_tokens, size).sum(axis=1)
    return summed.transpose(1, 0, 2).reshape(n_tokens, -1)


def _scores(q: F64, k: F64) -> F64:
    """Return scaled scores [heads, T, T], minus infinity for keys after the query."""
    future = np.triu(np.ones((q.shape[1], q.shape[1]), dtype=bool), 1)
    return np.where(future, -np.inf, q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2]))


def attention(i: Sequence[F64], a: Attrs) -> Outputs:
    """Return o [T, NH D] and lse [NH, T] from q, k, v."""
    shared_by = a["n_heads"] // a["n_kv_heads"]
    q, k, v = _heads(i[0], a["n_heads"]), *(_heads(x, a["n_kv_heads"], shared_by) for x in i[1:])
    scores = _scores(q, k)
    lse = np.log(np.exp(scores).sum(axis=2))
    return [_flat(np.exp(scores - lse[:, :, None]) @ v), lse]


def _attention_backward(i: Sequence[F64], a: Attrs) -> Outputs:
    shared_by = a["n_heads"] // a["n_kv_heads"]
    dout, q, o = (_heads(x, a["n_heads"]) for x in (i[0], i[1], i[4]))
    k, v = (_heads(x, a["n_kv_heads"], shared_by) for x in i[2:4])
    p = np.exp(_scores(q, k) - i[5][:, :, None])
    ds = p * (dout @ v.transpose(0, 2, 1) - (dout * o).sum(axis=2, keepdims=True)) / np.sqrt(q.shape[2])
    dk, dv = (_flat(x.transpose(0, 2, 1) @ y, shared_by) for x, y in ((ds, q), (p, dout)))
    return [_flat(ds @ k), dk, dv, None]


def _adamw(i: Sequence[F64], a: Attrs) -> Outputs:
    step, p, g, state = i
    first, second = np.split(state, 2)
    first = first + (1.0 - a["beta1"]) * (g - first)
    second = second + (1.0 - a["beta2"]) * (g * g - second)
    root = np.sqrt(second / (1.0 - a["beta2"] ** step)) + a["eps"]
    p = p * (1.0 - a["lr"] * a["weight_decay"]) - a["lr"] * first / (1.0 - a["beta1"] ** step) / root
    return [p, np.concatenate([first, second])]


EXPECTED: dict[str, Callable[[Sequence[F64], Attrs], Outputs]] = {
    "attention": attention,
    "attention_backward": _attention_backward,
    "lora_backward": lambda i, a: [
        a["lora_scale"] * (i[0] @ i[3]).T @ i[1],
        a["lora_scale"] * i[0].T @ (i[1] @ i[2].T),
        None,
    ],
    "rmsnorm": _norm,
    "rmsnorm_backward_input": _norm_backward,
    "rope": _rope,
    "swiglu": _swiglu,
    "swiglu_backward": _swiglu_backward,
    "adamw": _adamw,
}


def product(op: str, x: F64, w: F64) -> F64:
    """Return x W^T, or x W for the gradient of the input."""
    return x @ (w if op.endswith("_backward_input") else w.T)


def head(x: F64, labels: NDArray[np.uint32], w: Callable[[int, int], F64], n_rows: int) -> tuple[F64, F64]:
    """Return the statistics (sum of losses, number correct, number valid) and dx of the mean loss.

    Args:
        x: [T, C].
        labels: [T], all valid.
        w: Returns rows ``start`` to ``stop`` of W [V, C]: the whole in float64 would be a gigabyte.
        n_rows: V.
    """
    every, rows = np.arange(len(x)), 16_384
    logits = np.concatenate([x @ w(at, min(at + rows, n_rows)).T for at in range(0, n_rows, rows)], axis=1)
    largest = logits.max(axis=1, keepdims=True)
    lse = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    losses = lse[:, 0] - logits[every, labels]
    correct = np.count_nonzero(logits.argmax(axis=1) == labels)
    weights = np.exp(logits - lse)
    weights[every, labels] -= 1.0
    dx = sum(weights[:, at : at + rows] @ w(at, min(at + rows, n_rows)) for at in range(0, n_rows, rows))
    return np.array([losses.sum(), correct, len(x)]), np.asarray(dx / len(x))
