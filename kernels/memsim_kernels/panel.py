"""Blocks of a matrix copied, transposed or unpacked into the panel that the inner loop of a product reads.

``out`` and ``x`` are flat arrays; ``<array>_at`` is the first element, ``<array>_row`` the distance between rows, in
elements. The packed layout is the one of the weight files: q uint32 [N16, K8, 16] holds at [p, j, l] the columns
8 j ... 8 j + 7 of row 16 p + l as two's-complement nibbles, lowest first; scales [KG, 16 N16] holds float16 bits, one
per group of columns of a row. A group is a multiple of 16 columns.

A call counts references to every array, which is atomic and slow: so each function does a whole block.
"""

import numpy as np

from memsim_kernels.jit import F32, U16, U32, helper
from memsim_kernels.vectors import (
    LANES,
    half_to_float,
    move_16,
    transpose_16,
    unpack_8_columns,
    unpack_16_columns,
)

ALL, WITHOUT_UNPACKING, ONLY_UNPACKING = 0, 1, 2  # of a product with a packed matrix: what a benchmark leaves out


@helper
def copy_block(
    out: F32,
    out_at: int,
    out_row: int,
    x: F32,
    x_at: int,
    x_row: int,
    rows: int,
    columns: int,
    padded: int,
    scale: np.float32,
) -> None:
    """Write scale * x [rows, columns] to ``out`` [rows, padded]; columns of ``out`` beyond those of x become zero."""
    whole = columns // LANES * LANES
    for i in range(rows):
        to, source = out_at + i * out_row, x_at + i * x_row
        for j in range(0, whole, LANES):
            move_16(out, to + j, x, source + j, scale)
        for j in range(whole, columns):
            out[to + j] = x[source + j] * scale
        for j in range(columns, padded):
            out[to + j] = np.float32(0.0)


@helper
def transpose_block(
    out: F32,
    out_at: int,
    out_row: int,
    x: F32,
    x_at: int,
    x_row: int,
    rows: int,
    columns: int,
    padded: int,
    scale: np.float32,
) -> None:
    """Write scale * x [rows, columns] transposed to ``out`` [columns, padded], zero beyond column ``rows``."""
    whole_rows, whole_columns = rows // LANES * LANES, columns // LANES * LANES
    for i in range(0, whole_rows, LANES):
        for j in range(0, whole_columns, LANES):
            transpose_16(out, out_at + j * out_row + i, out_row, x, x_at + i * x_row + j, x_row, scale)
        for j in range(whole_columns, columns):
            for lane in range(LANES):
                out[out_at + j * out_row + i + lane] = x[x_at + (i + lane) * x_row + j] * scale
    for j in range(columns):
        for i in range(whole_rows, rows):
            out[out_at + j * out_row + i] = x[x_at + i * x_row + j] * scale
        for i in range(rows, padded):
            out[out_at + j * out_row + i] = np.float32(0.0)


@helper
def unpack_block(
    out: F32, out_at: int, out_row: int, q: U32, scales: U16, group_size: int,
    row: int, rows: int, column: int, columns: int,
) -> None:  # fmt: skip
    """Write W[row : row + rows, column : column + columns] to ``out``.

    ``column`` and ``columns`` are multiples of 16. Columns beyond the packed ones become zero.
    """
    flat_q, flat_scales = q.reshape(-1), scales.reshape(-1)
    eights, all_rows = q.shape[1], scales.shape[1]
    inside = min(columns, eights * 8 - column)
    first_group = column // group_size
    first_end = (first_group + 1) * group_size - column
    for i in range(row, row + rows):
        to = out_at + (i - row) * out_row
        dwords = (i // LANES * eights + column // 8) * LANES + i % LANES
        j, end, scale_at = 0, first_end, first_group * all_rows + i
        while j < inside:
            scale = half_to_float(flat_scales[scale_at])
            end = min(end, inside)
            while j < end:
                unpack_16_columns(out, to + j, flat_q, dwords + 2 * j, scale)
                j += LANES
            end += group_size
            scale_at += all_rows
        for zero in range(inside, columns):
            out[to + zero] = np.float32(0.0)


@helper
def unpack_block_transposed(
    out: F32, out_at: int, out_row: int, q: U32, scales: U16, group_size: int,
    row: int, rows: int, column: int, columns: int,
) -> None:  # fmt: skip
    """Write W[row : row + rows, column : column + columns] transposed to ``out`` [columns, rows].

    ``row`` and ``rows`` are multiples of 16, ``column`` one of 8. ``columns`` is rounded up to a multiple of 8.
    """
    flat_q, flat_scales = q.reshape(-1), scales.reshape(-1)
    eights, all_rows = q.shape[1], scales.shape[1]
    for j in range(0, columns, 8):
        group = (column + j) // group_size
        dwords = (row // LANES * eights + (column + j) // 8) * LANES
        for i in range(0, rows, LANES):
            unpack_8_columns(
                out,
                out_at + j * out_row + i,
                out_row,
                flat_q,
                dwords + i * eights,
                flat_scales,
                group * all_rows + row + i,
            )
