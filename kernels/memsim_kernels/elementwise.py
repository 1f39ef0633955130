"""Sums and copies of whole tensors."""

from numba import prange

from memsim_kernels.jit import F32, READ_2D, WRITE_2D, kernel

PIECE = 4096


@kernel(WRITE_2D, READ_2D, READ_2D)
def add(y: F32, a: F32, b: F32) -> None:
    """Compute y = a + b.

    Args:
        y: [T, C], written; may be ``a`` or ``b`` itself.
        a: [T, C].
        b: [T, C].
    """
    flat_y, flat_a, flat_b = y.reshape(-1), a.reshape(-1), b.reshape(-1)
    for piece in prange((flat_y.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        out, left, right = flat_y[start : start + PIECE], flat_a[start : start + PIECE], flat_b[start : start + PIECE]
        for i in range(out.size):
            out[i] = left[i] + right[i]


@kernel(WRITE_2D, READ_2D)
def copy(y: F32, x: F32) -> None:
    """Compute y = x.

    Args:
        y: [T, C], written; apart from ``x``.
        x: [T, C].
    """
    flat_y, flat_x = y.reshape(-1), x.reshape(-1)
    for piece in prange((flat_y.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        flat_y[start : start + PIECE] = flat_x[start : start + PIECE]
