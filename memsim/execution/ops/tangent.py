"""Ops with tangents: rows of x, and below them those of x', its derivative along one direction of the adapters.

Where a Jacobian is symmetric but for the weights, the backward kernel of the op multiplies by it; attention is made of
products. All in f32 but for the packed product, which is that of the compute path.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

import memsim_kernels as k
from memsim.execution.kernel_call import NO_BIAS, Attrs, Kernel
from memsim.execution.ops.elementwise import ELEMENTWISE_KERNELS
from memsim.execution.storage.mapped_weights import Array
from memsim.ir.ops.tangent import TANGENT_ROWS


def _halves(array: Array) -> tuple[Array, Array]:
    """Return the rows of a value and those of its tangent."""
    n = len(array) // 2
    return array[:n], array[n:]


def _linear(product: Kernel, o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    """Multiply both halves at once, without the bias; then add what is only one half's."""
    has_adapter = "lora_scale" in a
    rest = list(i[3:])
    low_rank = rest[-4:] if has_adapter else []
    bias = rest[0] if len(rest) > len(low_rank) else None
    product(o[:2], [*i[:3], *low_rank[:2]], a)
    y, dy = _halves(o[0])
    if bias is not None:
        y += bias
    if has_adapter:
        x, (down, up, d_down, d_up) = _halves(i[0])[0], low_rank
        h, dh = _halves(o[1])  # their contents, of the product above, are not needed any more
        up_t, d_up_t = o[2]
        np.copyto(up_t, up.T)
        np.copyto(d_up_t, d_up.T)
        for side, matrix, right in ((h, down, d_up_t), (dh, d_down, up_t)):
            k.linear_forward(side, x, matrix, NO_BIAS)
            side *= np.float32(a["lora_scale"])
            k.linear_backward_input(dy, side, right, True)


def _rmsnorm(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    size = len(i[1])
    (y, dy), (x, dx) = ([half.reshape(-1, size) for half in _halves(array)] for array in (o[0], i[0]))
    k.rmsnorm_forward(y, o[1], x, i[1], a["eps"])
    k.rmsnorm_backward_input(dy, dx, x, o[1], np.ones(size, np.float32), False)
    dy *= i[1]


def _layernorm(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    (y, dy), (x, dx) = _halves(o[0]), _halves(i[0])
    k.layernorm_forward(y, o[1], o[2], x, i[1], i[2], a["eps"])
    k.layernorm_backward_input(dy, dx, x, o[1], o[2], np.ones(len(i[1]), np.float32), False)
    dy *= i[1]


def _gated(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    (s, ds), (gate, d_gate), (up, d_up) = _halves(o[0]), _halves(i[0]), _halves(i[1])
    forward, backward = {
        "swiglu": (k.swiglu_forward, k.swiglu_backward),
        "geglu": (k.geglu_forward, k.geglu_backward),
    }[a["activation"]]
    by_gate, by_up, one = o[1]
    one.fill(1)
    backward(by_gate, by_up, one, gate, up)  # the derivatives of s
    forward(s, gate, up)
    np.multiply(by_gate, d_gate, out=ds)
    by_up *= d_up
    ds += by_up


def _pointwise(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    (y, dy), (x, dx) = _halves(o[0]), _halves(i[0])
    ELEMENTWISE_KERNELS[a["activation"]]([y], [x], a)
    ELEMENTWISE_KERNELS[f"{a['activation']}_backward"]([dy], [dx, x], a)


def _add_table_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    (y, dy), (x, dx) = _halves(o[0]), _halves(i[0])
    k.add(y, x, i[1][a["start"] : a["start"] + len(x)])
    k.copy(dy, dx)


def _attention(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    """Make softmax's derivative P' = P (S' - <P, S'>) some queries at a time, head by head: O' = P' V + P V'."""
    n_tokens = int(i[3][0]) if len(i) > 3 else len(i[0]) // 2
    halves = [_halves(array) for array in (o[0], *i[:3])]
    for half in halves[0]:
        half[n_tokens:] = 0  # padding
    (y, dy), (q, dq), (keys, d_keys), (v, dv) = ((x[:n_tokens], dx[:n_tokens]) for x, dx in halves)
    heads, kv_heads = a["n_heads"], a["n_kv_heads"]
    lse = o[1].reshape(-1)[: heads * n_tokens].reshape(heads, n_tokens)
    k.attention_forward(y, lse, q, keys, v, heads, kv_heads, a["scale"], a["window"], a["causal"])
    size, rows = q.shape[1] // heads, min(n_tokens, TANGENT_ROWS)
    pieces = o[2][: 7 * n_tokens * size].reshape(7, n_tokens, size)
    squares = o[2][7 * n_tokens * size :].reshape(3, rows * n_tokens)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        shared = slice(head // (heads // kv_heads) * size, (head // (heads // kv_heads) + 1) * size)
        sources = (q[:, own], dq[:, own], keys[:, shared], d_keys[:, shared], v[:, shared], dv[:, shared])
        for piece, source in zip(pieces, sources, strict=False):
            np.copyto(piece, source)
        for start in range(0, n_tokens, rows):
            count = min(rows, n_tokens - start)
            mats = [square[: count * n_tokens].reshape(count, n_tokens) for square in squares]
            _attention_rows(pieces, mats, start, lse[head, start : start + count], a)
            np.copyto(dy[start : start + count, own], pieces[6][:count])


def _attention_rows(pieces: Array, mats: Sequence[Array], start: int, lse: Array, a: Attrs) -> None:
    """Write o' of some queries of one head to the last of ``pieces``."""
    q, dq, keys, d_keys, v, dv, out = pieces
    p, dp, other = mats
    count = len(p)
    own = slice(start, start + count)
    k.linear_forward(p, q[own], keys, NO_BIAS)
    k.linear_forward(dp, dq[own], keys, NO_BIAS)
    k.linear_forward(other, q[own], d_keys, NO_BIAS)
    dp += other
    p *= np.float32(a["scale"])
    dp *= np.float32(a["scale"])
    p -= lse[:, None]
    for row in range(count if a["causal"] else 0):
        position = start + row
        p[row, position + 1 :] = -np.inf
        if a["window"]:
            p[row, : max(0, position + 1 - a["window"])] = -np.inf
    np.exp(p, out=p)
    np.multiply(p, dp, out=other)
    dp -= other.sum(axis=1, keepdims=True)
    dp *= p
    k.linear_backward_input(out[:count], dp, v, False)
    k.linear_backward_input(out[:count], p, dv, True)


def _head(head: Kernel, o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    x, dx = _halves(i[0])
    head(o[:3], [x, *i[1:]], a)
    # Row by row, so that no copy in float64 is larger.
    o[3][0] = sum(float(row.astype(np.float64) @ own) for row, own in zip(o[2], dx, strict=True))


def tangent_kernels(linear_q4: Kernel, head: Kernel) -> dict[str, Kernel]:
    """Return the table of ops with tangents, around a compute path's product and head."""
    return {
        "linear_q4_tangent": partial(_linear, linear_q4),
        "rmsnorm_tangent": _rmsnorm,
        "layernorm_tangent": _layernorm,
        "gated_tangent": _gated,
        "pointwise_tangent": _pointwise,
        "add_table_rows_tangent": _add_table_rows,
        "attention_tangent": _attention,
        "linear_cross_entropy_q4_tangent": partial(_head, head),
    }
