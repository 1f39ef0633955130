"""Cross-entropy over the vocabulary, with next-token accuracy. T tokens, V vocab_size."""

import math

import numpy as np
from numba import prange

from memsim_kernels.exponential import exp
from memsim_kernels.jit import (
    F32,
    F64,
    FLOAT,
    READ_1D,
    READ_2D,
    READ_IDS,
    READ_STATS,
    U32,
    WRITE_1D,
    WRITE_2D,
    WRITE_STATS,
    helper,
    kernel,
)

IGNORED = 0xFFFFFFFF
LANES = 64
PARTS = 64
PIECE = 1024


@helper
def _maximum(row: F32, lanes: F32) -> np.float32:
    lanes[:] = np.float32(-np.inf)
    for start in range(0, row.size, LANES):
        piece = row[start : start + LANES]
        for lane in range(piece.size):
            lanes[lane] = piece[lane] if piece[lane] > lanes[lane] else lanes[lane]
    largest = np.float32(-np.inf)
    for lane in range(LANES):
        largest = max(largest, lanes[lane])
    return largest


@helper
def _log_sum_exp(row: F32, lanes: F32) -> np.float32:
    largest = _maximum(row, lanes)
    lanes[:] = np.float32(0.0)
    for start in range(0, row.size, LANES):
        piece = row[start : start + LANES]
        for lane in range(piece.size):
            lanes[lane] += exp(piece[lane] - largest)
    total = np.float64(0.0)
    for lane in range(LANES):
        total += lanes[lane]
    return np.float32(largest + math.log(total))


@helper
def _is_first_maximum(row: F32, label: int) -> bool:
    target = row[label]
    better = 0
    for value in row[:label]:
        better += 0 if value < target else 1
    for value in row[label + 1 :]:
        better += 0 if value <= target else 1
    return better == 0


@kernel(WRITE_STATS, WRITE_1D, READ_2D, READ_IDS)
def cross_entropy_forward(stats: F64, lse: F32, logits: F32, labels: U32) -> None:
    """Sum the losses lse[t] - logits[t, labels[t]] and count the tokens whose label has the largest logit.

    Args:
        stats: float64 [3], written: sum of losses, number correct, number valid. The sum is NaN when a label is
            neither below V nor IGNORED.
        lse: [T], written: log of the sum of exp of each row; ``cross_entropy_backward`` reads it.
        logits: [T, V].
        labels: uint32 [T]; IGNORED (0xFFFFFFFF) counts nowhere.
    """
    count, size = logits.shape
    parts = np.zeros((PARTS, 3), np.float64)  # as many as PARTS whatever the threads, so that sums have one order
    for part in prange(PARTS):
        lanes = np.empty(LANES, np.float32)
        for t in range(part, count, PARTS):
            row = logits[t]
            lse[t] = _log_sum_exp(row, lanes)
            label = int(labels[t])
            if label < size:
                parts[part, 0] += np.float64(lse[t]) - np.float64(row[label])
                parts[part, 1] += 1.0 if _is_first_maximum(row, label) else 0.0
                parts[part, 2] += 1.0
            elif label != IGNORED:
                parts[part, 0] = np.nan
    stats[:] = 0.0
    for part in range(PARTS):
        for i in range(3):
            stats[i] += parts[part, i]


@kernel(WRITE_2D, READ_2D, READ_IDS, READ_1D, READ_STATS, FLOAT)
def cross_entropy_backward(dlogits: F32, logits: F32, labels: U32, lse: F32, stats: F64, scale: float) -> None:
    """Compute dlogits = (softmax(logits) - onehot(labels)) * scale / number valid, zero rows for ignored labels.

    Args:
        dlogits: [T, V], written; may be ``logits`` itself.
        logits: [T, V].
        labels: uint32 [T], as in the forward pass.
        lse: [T], from the forward pass.
        stats: float64 [3], from the forward pass.
        scale: Factor of the mean loss whose gradient this is.
    """
    count, size = logits.shape
    factor = np.float32(scale / stats[2]) if stats[2] > 0.0 else np.float32(0.0)
    for t in prange(count):
        row, out, offset = logits[t], dlogits[t], lse[t]
        label = int(labels[t])
        share = factor if label < size else np.float32(0.0)
        # Through a buffer of its own: in place, the loop could not become vector code.
        buffer = np.empty(PIECE, np.float32)
        for start in range(0, size, PIECE):
            piece = row[start : start + PIECE]
            for j in range(piece.size):
                buffer[j] = exp(piece[j] - offset) * share
            out[start : start + PIECE] = buffer[: piece.size]
        if label < size:
            out[label] -= factor
