"""In-place parameter updates, equal to torch.optim.SGD and torch.optim.AdamW. All arrays are flat [n]."""

import numpy as np
from numba import prange

from memsim_kernels.jit import F32, FLOAT, INT, READ_1D, WRITE_1D, kernel

PIECE = 4096


@kernel(WRITE_1D, READ_1D, FLOAT, FLOAT)
def sgd_update(p: F32, g: F32, lr: float, weight_decay: float) -> None:
    """Compute p -= lr * (g + weight_decay * p).

    Args:
        p: Parameters, updated.
        g: Gradients.
        lr: Learning rate.
        weight_decay: Added to the gradient, times p.
    """
    rate, decay = np.float32(lr), np.float32(weight_decay)
    for piece in prange((p.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        value, grad = p[start : start + PIECE], g[start : start + PIECE]
        for i in range(value.size):
            value[i] -= rate * (grad[i] + decay * value[i])


@kernel(WRITE_1D, WRITE_1D, READ_1D, FLOAT, FLOAT, FLOAT)
def momentum_update(p: F32, m: F32, g: F32, lr: float, momentum: float, weight_decay: float) -> None:
    """Compute m = momentum * m + g + weight_decay * p, then p -= lr * m (heavy ball).

    Args:
        p: Parameters, updated.
        m: Momentum, updated; zeros before the first step.
        g: Gradients.
        lr: Learning rate.
        momentum: Decay of m.
        weight_decay: Added to the gradient, times p.
    """
    rate, keep, decay = np.float32(lr), np.float32(momentum), np.float32(weight_decay)
    for piece in prange((p.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        value, moment, grad = p[start : start + PIECE], m[start : start + PIECE], g[start : start + PIECE]
        for i in range(value.size):
            moment[i] = keep * moment[i] + (grad[i] + decay * value[i])
            value[i] -= rate * moment[i]


@kernel(WRITE_1D, WRITE_1D, WRITE_1D, READ_1D, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, INT)
def adamw_update(
    p: F32, m: F32, v: F32, g: F32,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
) -> None:  # fmt: skip
    """Take one AdamW step (decoupled weight decay, bias correction).

    Args:
        p: Parameters, updated.
        m: First moment, updated; zeros before the first step.
        v: Second moment, updated; zeros before the first step.
        g: Gradients.
        lr: Learning rate.
        beta1: Decay of m.
        beta2: Decay of v.
        eps: Added to the root of the second moment.
        weight_decay: Share of p removed, times lr.
        step: 1 for the first update.
    """
    shrink = np.float32(1.0 - lr * weight_decay)
    rate = np.float32(lr / (1.0 - beta1**step))
    root = np.float32(np.sqrt(1.0 - beta2**step))
    keep2, take1, take2 = np.float32(beta2), np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    floor = np.float32(eps)
    for piece in prange((p.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        value, grad = p[start : start + PIECE], g[start : start + PIECE]
        first, second = m[start : start + PIECE], v[start : start + PIECE]
        for i in range(value.size):
            first[i] += take1 * (grad[i] - first[i])
            second[i] = keep2 * second[i] + take2 * (grad[i] * grad[i])
            value[i] = value[i] * shrink - rate * (first[i] / (np.sqrt(second[i]) / root + floor))
