"""Gradients of trained vectors: the weight of a norm, and any bias. T tokens, C columns."""

import numpy as np
from numba import prange

from memsim_kernels.jit import BOOL, F32, READ_1D, READ_2D, WRITE_1D, kernel

LANES = 64


@kernel(WRITE_1D, READ_2D, READ_2D, READ_1D, READ_1D, BOOL)
def norm_backward_weight(dw: F32, dy: F32, x: F32, mean: F32, rstd: F32, accumulate: bool) -> None:
    """Compute dw = sum over T of dy n with n = (x - mean) rstd, or add it to dw; sums are in f64.

    Args:
        dw: [C], written, or added to when ``accumulate``.
        dy: [T, C].
        x: [T, C], as in the forward pass.
        mean: [T], from the forward pass; empty for 0 (RMSNorm).
        rstd: [T], from the forward pass.
        accumulate: Add to dw.
    """
    count, size = x.shape
    for block in prange((size + LANES - 1) // LANES):
        start = block * LANES
        sums = np.zeros(LANES, np.float64)
        for t in range(count):
            piece, grad = x[t, start : start + LANES], dy[t, start : start + LANES]
            factor = rstd[t]
            middle = mean[t] if mean.size else np.float32(0.0)
            for lane in range(piece.size):
                sums[lane] += grad[lane] * ((piece[lane] - middle) * factor)
        out = dw[start : start + LANES]
        for lane in range(out.size):
            out[lane] = np.float32((out[lane] if accumulate else np.float32(0.0)) + sums[lane])


@kernel(WRITE_1D, READ_2D, BOOL)
def sum_rows(total: F32, x: F32, accumulate: bool) -> None:
    """Compute the sum of the rows of x, or add it to ``total``; sums are in f64.

    Args:
        total: [C], written, or added to when ``accumulate``.
        x: [T, C].
        accumulate: Add to ``total``.
    """
    count, size = x.shape
    for block in prange((size + LANES - 1) // LANES):
        start = block * LANES
        sums = np.zeros(LANES, np.float64)
        for t in range(count):
            piece = x[t, start : start + LANES]
            for lane in range(piece.size):
                sums[lane] += piece[lane]
        out = total[start : start + LANES]
        for lane in range(out.size):
            out[lane] = np.float32((out[lane] if accumulate else np.float32(0.0)) + sums[lane])
