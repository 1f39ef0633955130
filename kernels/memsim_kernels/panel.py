"""Panels: a block of the right-hand matrix of a product, laid out for the inner loop, and unpacked if it is INT4.

A panel is [depth, width] float32, width a multiple of 16; columns beyond the matrix are zero. The packed layout is
the one of the weight files: q uint32 [N16, K8, 16] holds at [p, j, l] the columns 8 j ... 8 j + 7 of row 16 p + l as
two's-complement nibbles, lowest first; scales [KG, 16 N16] holds float16 bits, one per group of columns of a row.
"""

import numpy as np

from memsim_kernels.half import half_to_float
from memsim_kernels.jit import F32, U16, U32, helper


@helper
def copy_panel(panel: F32, width: int, b: F32, k_at: int, depth: int, column: int, scale: float) -> None:
    """Fill ``panel`` with scale * b[k_at : k_at + depth, column : column + width], b [K, N]."""
    inside = min(width, b.shape[1] - column)
    for k in range(depth):
        out = panel[k * width : (k + 1) * width]
        line = b[k_at + k, column : column + inside]
        for j in range(inside):
            out[j] = line[j] * scale
        for j in range(inside, width):
            out[j] = 0.0


@helper
def transpose_panel(panel: F32, width: int, b: F32, k_at: int, depth: int, column: int, scale: float) -> None:
    """Fill ``panel`` with scale * b[column : column + width, k_at : k_at + depth] transposed, b [N, K]."""
    inside = min(width, b.shape[0] - column)
    for j in range(inside):
        line = b[column + j, k_at : k_at + depth]
        for k in range(depth):
            panel[k * width + j] = line[k] * scale
    for k in range(depth):
        for j in range(inside, width):
            panel[k * width + j] = 0.0


@helper
def unpack_panel(
    panel: F32, width: int, q: U32, scales: U16, group_size: int, k_at: int, depth: int, column: int
) -> None:
    """Fill ``panel`` with W[k_at : k_at + depth, column : column + width], W [N, K] packed."""
    inside = min(width, q.shape[1] * 8 - column)
    for k in range(depth):
        row = k_at + k
        for j in range(inside):
            col = column + j
            dword = np.int64(q[row // 16, col // 8, row % 16])
            nibble = (dword >> (4 * (col % 8))) & 15
            value = np.float32((nibble ^ 8) - 8)
            panel[k * width + j] = value * half_to_float(scales[col // group_size, row])
        for j in range(inside, width):
            panel[k * width + j] = 0.0


@helper
def unpack_transposed_panel(
    panel: F32, width: int, q: U32, scales: U16, group_size: int, k_at: int, depth: int, column: int
) -> None:
    """Fill ``panel`` with W[column : column + width, k_at : k_at + depth] transposed, W [N, K] packed."""
    inside = min(width, q.shape[0] * 16 - column)
    for k in range(depth):
        col = k_at + k
        for j in range(inside):
            row = column + j
            dword = np.int64(q[row // 16, col // 8, row % 16])
            nibble = (dword >> (4 * (col % 8))) & 15
            value = np.float32((nibble ^ 8) - 8)
            panel[k * width + j] = value * half_to_float(scales[col // group_size, row])
        for j in range(inside, width):
            panel[k * width + j] = 0.0
