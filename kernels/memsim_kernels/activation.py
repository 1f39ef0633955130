"""Gated activations, s = f(gate) * up, with f(g) = g sigmoid(u). T tokens, H intermediate_size.

SwiGLU: u = g, the SiLU. GeGLU: u = 2 sqrt(2 / pi) (g + 0.044715 g^3); g sigmoid(u) = g (1 + tanh(u / 2)) / 2 is the
tanh form of GELU (https://arxiv.org/abs/1606.08415, section 2).
"""

from math import pi, sqrt

import numpy as np
from numba import prange

from memsim_kernels.exponential import exp
from memsim_kernels.jit import F32, READ_2D, WRITE_2D, kernel

PIECE = 1024
_LINEAR = np.float32(2.0 * sqrt(2.0 / pi))
_CUBIC = np.float32(2.0 * sqrt(2.0 / pi) * 0.044715)
_LARGEST_SQUARE = np.float32(1e4)  # beyond g = 100 the sigmoid is 0 or 1 to the last bit; g^2 must not become infinite


@kernel(WRITE_2D, READ_2D, READ_2D)
def swiglu_forward(s: F32, gate: F32, up: F32) -> None:
    """Compute s = silu(gate) * up.

    Args:
        s: [T, H], written; may be ``gate`` or ``up`` itself.
        gate: [T, H].
        up: [T, H].
    """
    one = np.float32(1.0)
    flat_s, flat_gate, flat_up = s.reshape(-1), gate.reshape(-1), up.reshape(-1)
    for piece in prange((flat_s.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        g, u = flat_gate[start : start + PIECE], flat_up[start : start + PIECE]
        # Through a buffer of its own: in place, the loop could not become vector code.
        buffer = np.empty(PIECE, np.float32)
        for i in range(g.size):
            buffer[i] = g[i] / (one + exp(-g[i])) * u[i]
        flat_s[start : start + PIECE] = buffer[: g.size]


@kernel(WRITE_2D, READ_2D, READ_2D)
def geglu_forward(s: F32, gate: F32, up: F32) -> None:
    """Compute s = gelu(gate) * up.

    Args:
        s: [T, H], written; may be ``gate`` or ``up`` itself.
        gate: [T, H].
        up: [T, H].
    """
    one = np.float32(1.0)
    flat_s, flat_gate, flat_up = s.reshape(-1), gate.reshape(-1), up.reshape(-1)
    for piece in prange((flat_s.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        g, u = flat_gate[start : start + PIECE], flat_up[start : start + PIECE]
        buffer = np.empty(PIECE, np.float32)
        for i in range(g.size):
            square = min(g[i] * g[i], _LARGEST_SQUARE)
            buffer[i] = g[i] / (one + exp(-g[i] * (_LINEAR + _CUBIC * square))) * u[i]
        flat_s[start : start + PIECE] = buffer[: g.size]


@kernel(WRITE_2D, WRITE_2D, READ_2D, READ_2D, READ_2D)
def swiglu_backward(dgate: F32, dup: F32, ds: F32, gate: F32, up: F32) -> None:
    """Compute dup = ds * silu(gate) and dgate = ds * up * silu'(gate).

    Args:
        dgate: [T, H], written; may be ``gate`` itself.
        dup: [T, H], written; may be ``up`` itself.
        ds: [T, H].
        gate: [T, H].
        up: [T, H].
    """
    one = np.float32(1.0)
    flat_dgate, flat_dup, flat_ds = dgate.reshape(-1), dup.reshape(-1), ds.reshape(-1)
    flat_gate, flat_up = gate.reshape(-1), up.reshape(-1)
    for piece in prange((flat_ds.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        d, g, u = flat_ds[start : start + PIECE], flat_gate[start : start + PIECE], flat_up[start : start + PIECE]
        buffer = np.empty((2, PIECE), np.float32)
        for i in range(d.size):
            sigmoid = one / (one + exp(-g[i]))
            silu = g[i] * sigmoid
            buffer[0, i] = d[i] * u[i] * (sigmoid + silu * (one - sigmoid))
            buffer[1, i] = d[i] * silu
        flat_dgate[start : start + PIECE] = buffer[0, : d.size]
        flat_dup[start : start + PIECE] = buffer[1, : d.size]


@kernel(WRITE_2D, WRITE_2D, READ_2D, READ_2D, READ_2D)
def geglu_backward(dgate: F32, dup: F32, ds: F32, gate: F32, up: F32) -> None:
    """Compute dup = ds * gelu(gate) and dgate = ds * up * gelu'(gate).

    Args:
        dgate: [T, H], written; may be ``gate`` itself.
        dup: [T, H], written; may be ``up`` itself.
        ds: [T, H].
        gate: [T, H].
        up: [T, H].
    """
    one, three = np.float32(1.0), np.float32(3.0)
    flat_dgate, flat_dup, flat_ds = dgate.reshape(-1), dup.reshape(-1), ds.reshape(-1)
    flat_gate, flat_up = gate.reshape(-1), up.reshape(-1)
    for piece in prange((flat_ds.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        d, g, u = flat_ds[start : start + PIECE], flat_gate[start : start + PIECE], flat_up[start : start + PIECE]
        buffer = np.empty((2, PIECE), np.float32)
        for i in range(d.size):
            square = min(g[i] * g[i], _LARGEST_SQUARE)
            sigmoid = one / (one + exp(-g[i] * (_LINEAR + _CUBIC * square)))
            gelu = g[i] * sigmoid
            buffer[0, i] = d[i] * u[i] * (sigmoid + gelu * (one - sigmoid) * (_LINEAR + three * _CUBIC * square))
            buffer[1, i] = d[i] * gelu
        flat_dgate[start : start + PIECE] = buffer[0, : d.size]
        flat_dup[start : start + PIECE] = buffer[1, : d.size]
