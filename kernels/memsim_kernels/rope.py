"""Rotary position embedding, half-split: (x1, x2) of a head becomes (x1 cos - x2 sin, x2 cos + x1 sin).

T tokens, D head_dim; x1 and x2 are the first and the second D/2 columns of a head.
"""

import numpy as np
from numba import prange

from memsim_kernels.jit import F32, FLOAT, INT, READ_2D, WRITE_2D, kernel


@kernel(WRITE_2D, READ_2D, READ_2D, READ_2D, INT, FLOAT)
def _rotate(y: F32, x: F32, cos: F32, sin: F32, n_heads: int, direction: float) -> None:
    half = cos.shape[1]
    sign = np.float32(direction)
    for t in prange(x.shape[0]):
        cosines, sines = cos[t], sin[t]
        for head in range(n_heads):
            start = 2 * half * head
            first, second = x[t, start : start + half], x[t, start + half : start + 2 * half]
            out_first, out_second = y[t, start : start + half], y[t, start + half : start + 2 * half]
            for d in range(half):
                x1, x2, c, s = first[d], second[d], cosines[d], sign * sines[d]
                out_first[d] = x1 * c - x2 * s
                out_second[d] = x2 * c + x1 * s


def rope_forward(y: F32, x: F32, cos: F32, sin: F32, n_heads: int) -> None:
    """Rotate every head of every token.

    Args:
        y: [T, n_heads * D], written; may be ``x`` itself.
        x: [T, n_heads * D].
        cos: [T, D / 2].
        sin: [T, D / 2].
        n_heads: Heads side by side in a row.
    """
    _rotate(y, x, cos, sin, n_heads, 1.0)


def rope_backward(dx: F32, dy: F32, cos: F32, sin: F32, n_heads: int) -> None:
    """Rotate back: the gradient of ``rope_forward``.

    Args:
        dx: [T, n_heads * D], written; may be ``dy`` itself.
        dy: [T, n_heads * D].
        cos: [T, D / 2].
        sin: [T, D / 2].
        n_heads: Heads side by side in a row.
    """
    _rotate(dx, dy, cos, sin, n_heads, -1.0)
