"""ReLU. T tokens, H intermediate_size."""

import numpy as np
from numba import prange

from memsim_kernels.jit import F32, READ_2D, WRITE_2D, kernel

PIECE = 1024


@kernel(WRITE_2D, READ_2D)
def relu_forward(y: F32, x: F32) -> None:
    """Compute y = max(x, 0).

    Args:
        y: [T, H], written; may be ``x`` itself.
        x: [T, H].
    """
    flat_y, flat_x = y.reshape(-1), x.reshape(-1)
    for piece in prange((flat_y.size + PIECE - 1) // PIECE):
        for i in range(piece * PIECE, min(flat_y.size, (piece + 1) * PIECE)):
            flat_y[i] = max(flat_x[i], np.float32(0.0))


@kernel(WRITE_2D, READ_2D, READ_2D)
def relu_backward(dx: F32, dy: F32, x: F32) -> None:
    """Compute dx = dy where x > 0, and 0 elsewhere.

    Args:
        dx: [T, H], written; may be ``dy`` or ``x`` itself.
        dy: [T, H].
        x: [T, H].
    """
    flat_dx, flat_dy, flat_x = dx.reshape(-1), dy.reshape(-1), x.reshape(-1)
    for piece in prange((flat_dx.size + PIECE - 1) // PIECE):
        for i in range(piece * PIECE, min(flat_dx.size, (piece + 1) * PIECE)):
            flat_dx[i] = flat_dy[i] if flat_x[i] > np.float32(0.0) else np.float32(0.0)
