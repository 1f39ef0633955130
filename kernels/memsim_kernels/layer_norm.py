"""LayerNorm over the last axis; weight and bias are frozen. T tokens, C hidden_size."""

import numpy as np
from numba import prange

from memsim_kernels.jit import BOOL, F32, FLOAT, READ_1D, READ_2D, WRITE_1D, WRITE_2D, kernel
from memsim_kernels.norm import LANES, ROWS, lane_sum


@kernel(WRITE_2D, WRITE_1D, WRITE_1D, READ_2D, READ_1D, READ_1D, FLOAT)
def layernorm_forward(y: F32, mean: F32, rstd: F32, x: F32, weight: F32, bias: F32, eps: float) -> None:
    """Compute mean, rstd = 1 / sqrt(mean((x - mean)^2) + eps) and y = weight (x - mean) rstd + bias.

    Args:
        y: [T, C], written.
        mean: [T], written; ``layernorm_backward_input`` reads it, as it does rstd.
        rstd: [T], written.
        x: [T, C].
        weight: [C].
        bias: [C].
        eps: Added to the variance.
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
                    lanes[lane] += piece[lane]
            middle = lane_sum(lanes) / np.float32(size)
            lanes[:] = np.float32(0.0)
            for start in range(0, size, LANES):
                piece = row[start : start + LANES]
                for lane in range(piece.size):
                    lanes[lane] += (piece[lane] - middle) * (piece[lane] - middle)
            factor = np.float32(1.0) / np.sqrt(lane_sum(lanes) / np.float32(size) + np.float32(eps))
            mean[t], rstd[t] = middle, factor
            for c in range(size):
                out[c] = weight[c] * ((row[c] - middle) * factor) + bias[c]


@kernel(WRITE_2D, READ_2D, READ_2D, READ_1D, READ_1D, READ_1D, BOOL)
def layernorm_backward_input(dx: F32, dy: F32, x: F32, mean: F32, rstd: F32, weight: F32, accumulate: bool) -> None:
    """Compute dx = rstd (w dy - mean(w dy) - n mean(w dy n)) with n = (x - mean) rstd, or add it to dx.

    Args:
        dx: [T, C], written, or added to when ``accumulate``.
        dy: [T, C].
        x: [T, C], as in the forward pass.
        mean: [T], from the forward pass.
        rstd: [T], from the forward pass.
        weight: [C].
        accumulate: Add to dx.
    """
    count, size = x.shape
    for block in prange((count + ROWS - 1) // ROWS):
        plain, weighted = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        for t in range(block * ROWS, min(count, (block + 1) * ROWS)):
            row, grad, out, middle, factor = x[t], dy[t], dx[t], mean[t], rstd[t]
            plain[:] = np.float32(0.0)
            weighted[:] = np.float32(0.0)
            for start in range(0, size, LANES):
                piece, grad_piece = row[start : start + LANES], grad[start : start + LANES]
                weight_piece = weight[start : start + LANES]
                for lane in range(piece.size):
                    scaled = weight_piece[lane] * grad_piece[lane]
                    plain[lane] += scaled
                    weighted[lane] += scaled * (piece[lane] - middle)
            first = lane_sum(plain) / np.float32(size)
            second = lane_sum(weighted) / np.float32(size) * factor * factor
            for c in range(size):
                change = factor * (weight[c] * grad[c] - first - (row[c] - middle) * second)
                out[c] = out[c] + change if accumulate else change
