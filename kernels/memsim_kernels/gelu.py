"""GELU itself (not its tanh form): y = x Phi(x), Phi the normal distribution. T tokens, H intermediate_size.

Phi(-a) = erfc(z) / 2 with z = a / sqrt(2), and erfc(z) = t exp(p(t) - z^2) with t = 1 / (1 + z / 2), which is
smooth: p is a polynomial. Phi(a) = 1 - Phi(-a) cancels nowhere, so Phi is right to some 1e-6 of itself on both sides,
and y with it. Reference: https://arxiv.org/abs/1606.08415, section 2.
"""

from math import pi, sqrt
from typing import Any

import numpy as np
from numba import prange

from memsim_kernels.exponential import exp
from memsim_kernels.jit import F32, READ_2D, WRITE_2D, helper, kernel

PIECE = 1024
# Beyond a = 20 Phi(-a) is 0 in float32; a^2 must not become infinite.
_LARGEST = np.float32(20.0)
_HALF_ROOT = np.float32(sqrt(0.5) / 2.0)
_DENSITY = np.float32(1.0 / sqrt(2.0 * pi))
# p interpolates log(erfc(z) exp(z^2) / t) at the Chebyshev nodes of z = 0 ... 10.2; off by at most 5.3e-8.
_P0, _P1 = np.float32(-1.265459846), np.float32(0.9988837636)
_P2, _P3 = np.float32(0.3844016544), np.float32(0.0456637257)
_P4, _P5 = np.float32(-0.03219606989), np.float32(-0.01574895401)
_P6, _P7 = np.float32(-0.7758814866), np.float32(1.217592966)
_P8, _P9 = np.float32(-0.7070607291), np.float32(0.1498050262)


@helper
def _distribution(x: np.float32) -> Any:
    """Return Phi(x)."""
    half, one = np.float32(0.5), np.float32(1.0)
    a = min(abs(x), _LARGEST)
    t = one / (one + a * _HALF_ROOT)
    p = _P5 + t * (_P6 + t * (_P7 + t * (_P8 + t * _P9)))
    p = _P0 + t * (_P1 + t * (_P2 + t * (_P3 + t * (_P4 + t * p))))
    below = half * t * exp(p - half * a * a)
    return below if x < np.float32(0.0) else one - below


@kernel(WRITE_2D, READ_2D)
def gelu_forward(y: F32, x: F32) -> None:
    """Compute y = x Phi(x).

    Args:
        y: [T, H], written; may be ``x`` itself.
        x: [T, H].
    """
    flat_y, flat_x = y.reshape(-1), x.reshape(-1)
    for piece in prange((flat_y.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        own = flat_x[start : start + PIECE]
        buffer = np.empty(PIECE, np.float32)  # in place, the loop could not become vector code
        for i in range(own.size):
            buffer[i] = own[i] * _distribution(own[i])
        flat_y[start : start + PIECE] = buffer[: own.size]


@kernel(WRITE_2D, READ_2D, READ_2D)
def gelu_backward(dx: F32, dy: F32, x: F32) -> None:
    """Compute dx = dy (Phi(x) + x phi(x)), phi the normal density.

    Args:
        dx: [T, H], written; may be ``dy`` or ``x`` itself.
        dy: [T, H].
        x: [T, H].
    """
    half = np.float32(0.5)
    flat_dx, flat_dy, flat_x = dx.reshape(-1), dy.reshape(-1), x.reshape(-1)
    for piece in prange((flat_dx.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        grad, own = flat_dy[start : start + PIECE], flat_x[start : start + PIECE]
        buffer = np.empty(PIECE, np.float32)
        for i in range(own.size):
            a = min(abs(own[i]), _LARGEST)
            density = _DENSITY * exp(-half * a * a)
            buffer[i] = grad[i] * (_distribution(own[i]) + own[i] * density)
        flat_dx[start : start + PIECE] = buffer[: own.size]
