"""Blocks of a matrix copied, transposed or unpacked into the panel that the inner loop of a product reads.

``out`` and ``x`` are flat arrays; ``<array>_at`` is the first element, ``<array>_row`` the distance between rows, in
elements. The packed layout is the one of the weight files: q uint32 holds at [p, j, l] the levels of neighbouring
columns of row 16 p + l, lowest first; scales holds float16 bits, for groups of columns of a row (see ``levels``). A
group is a multiple of 16 columns.

A call counts references to every array, which is atomic and slow: so each function does a whole block.
"""

from typing import Any

import numpy as np

from memsim_kernels.jit import F32, U16, U32, helper
from memsim_kernels.levels import (
    AFFINE,
    SYMMETRIC,
    SYMMETRIC_8,
    eight_affine,
    eight_symmetric,
    eight_symmetric_8,
    format_of,
    sixteen_affine,
    sixteen_symmetric,
    sixteen_symmetric_8,
)
from memsim_kernels.vectors import LANES, half_to_float, move_16, transpose_16

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
    form, dwords_of_row, all_rows = format_of(q, scales, group_size), q.shape[1], scales.shape[1]
    share = 4 if form == SYMMETRIC_8 else 8  # columns of a dword
    group_rows = 2 if form == AFFINE else 1
    inside = min(columns, dwords_of_row * share - column)
    first_group = column // group_size
    first_end = (first_group + 1) * group_size - column
    for i in range(row, row + rows):
        to = out_at + (i - row) * out_row
        dwords = (i // LANES * dwords_of_row + column // share) * LANES + i % LANES
        j, end, scale_at = 0, first_end, first_group * group_rows * all_rows + i
        while j < inside:
            scale, offset = half_to_float(flat_scales[scale_at]), np.float32(0.0)
            end = min(end, inside)
            if form == SYMMETRIC:
                while j < end:
                    sixteen_symmetric(out, to + j, flat_q, dwords + 2 * j, scale, offset)
                    j += LANES
            elif form == AFFINE:
                offset = half_to_float(flat_scales[scale_at + all_rows])
                while j < end:
                    sixteen_affine(out, to + j, flat_q, dwords + 2 * j, scale, offset)
                    j += LANES
            else:
                while j < end:
                    sixteen_symmetric_8(out, to + j, flat_q, dwords + 4 * j, scale, offset)
                    j += LANES
            end += group_size
            scale_at += group_rows * all_rows
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
    form, dwords_of_row, all_rows = format_of(q, scales, group_size), q.shape[1], scales.shape[1]
    share = 4 if form == SYMMETRIC_8 else 8  # columns of a dword
    group_rows = 2 if form == AFFINE else 1
    for j in range(0, columns, 8):
        scale_at = (column + j) // group_size * group_rows * all_rows + row
        dwords = (row // LANES * dwords_of_row + (column + j) // share) * LANES
        for i in range(0, rows, LANES):
            to, at, scale = out_at + j * out_row + i, dwords + i * dwords_of_row, scale_at + i
            if form == SYMMETRIC:
                eight_symmetric(out, to, out_row, flat_q, at, flat_scales, scale, all_rows)
            elif form == AFFINE:
                eight_affine(out, to, out_row, flat_q, at, flat_scales, scale, all_rows)
            else:
                eight_symmetric_8(out, to, out_row, flat_q, at, flat_scales, scale, all_rows)


@helper
def packed_weight(q: U32, scales: U16, group_size: int, form: int, row: np.int64, column: int) -> Any:
    """Return one weight of a packed matrix whose format is ``form``."""
    share = 4 if form == SYMMETRIC_8 else 8
    group = column // group_size * (2 if form == AFFINE else 1)
    dword = np.int64(q[row // LANES, column // share, row % LANES])
    scale = half_to_float(scales[group, row])
    if form == SYMMETRIC_8:
        level = (dword >> (8 * (column % 4))) & 255
        return np.float32((level ^ 128) - 128) * scale
    level = (dword >> (4 * (column % 8))) & 15
    if form == AFFINE:
        return np.float32(level) * scale + half_to_float(scales[group + 1, row])
    return np.float32((level ^ 8) - 8) * scale
