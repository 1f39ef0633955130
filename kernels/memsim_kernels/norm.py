"""RMSNorm over the last axis; the weight is frozen. T tokens, C hidden_size."""

import numpy as np
from numba import prange

from memsim_kernels.jit import BOOL, F32, FLOAT, READ_1D, READ_2D, WRITE_1D, WRITE_2D, helper, kernel

LANES = 64
ROWS = 16


@helper
def lane_sum(lanes: F32) -> np.float32:
    """Return the sum of 64 lanes, always in the same order."""
    total = np.float32(0.0)
    for lane in range(LANES):
        total += lanes[lane]
    return total


@kernel(WRITE_2D, WRITE_1D, READ_2D, READ_1D, FLOAT)
def rmsnorm_forward(y: F32, rstd: F32, x: F32, weight: F32, eps: float) -> None:
    """Compute rstd = 1 / sqrt(mean(x^2) + eps) and y = weight * x * rstd.

    Args:
        y: [T, C], written.
        rstd: [T], written; ``rmsnorm_backward_input`` reads it.
        x: [T, C].
        weight: [C].
        eps: Added to the mean square.
    """
    count, size = x.shape
    for block in prange((count + ROWS - 1) // ROWS):
        lanes = np.empty(LANES, np.float32)
        for t in range(block * ROWS, min(count, (block + 1) * ROWS)):
            row, out = x[t], y[t]
            lanes[:] = np.float32(0.0)
            for start in range(0, size, LANES):
                piece = row[start : start + LANES]
                for lane in range(piece.size):
                    lanes[lane] += piece[lane] * piece[lane]
            factor = np.float32(1.0) / np.sqrt(lane_sum(lanes) / np.float32(size) + np.float32(eps))
            rstd[t] = factor
            for c in range(size):
                out[c] = weight[c] * (row[c] * factor)


@kernel(WRITE_2D, READ_2D, READ_2D, READ_1D, READ_1D, BOOL)
def rmsnorm_backward_input(dx: F32, dy: F32, x: F32, rstd: F32, weight: F32, accumulate: bool) -> None:
    """Compute dx = rstd * (w dy - n mean(w dy n)) with n = x rstd, or add it to dx.

    Args:
        dx: [T, C], written, or added to when ``accumulate``.
        dy: [T, C].
        x: [T, C], as in the forward pass.
        rstd: [T], from the forward pass.
        weight: [C].
        accumulate: Add to dx.
    """
    count, size = x.shape
    for block in prange((count + ROWS - 1) // ROWS):
        lanes = np.empty(LANES, np.float32)
        for t in range(block * ROWS, min(count, (block + 1) * ROWS)):
            row, grad, out = x[t], dy[t], dx[t]
            lanes[:] = np.float32(0.0)
            for start in range(0, size, LANES):
                piece = row[start : start + LANES]
                grad_piece = grad[start : start + LANES]
                weight_piece = weight[start : start + LANES]
                for lane in range(piece.size):
                    lanes[lane] += weight_piece[lane] * grad_piece[lane] * piece[lane]
            factor = rstd[t]
            mean = lane_sum(lanes) / np.float32(size) * factor * factor
            if accumulate:
                for c in range(size):
                    out[c] += factor * (weight[c] * grad[c] - row[c] * mean)
            else:
                for c in range(size):
                    out[c] = factor * (weight[c] * grad[c] - row[c] * mean)
