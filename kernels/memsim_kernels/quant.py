"""INT4 matrices written out as float32: a whole one, or the rows of an embedding that a batch of tokens needs."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from memsim_kernels.jit import F32, FLOAT, INT, READ_IDS, READ_Q, READ_SCALES, U16, U32, WRITE_2D, helper, kernel
from memsim_kernels.panel import copy_block, unpack_block
from memsim_kernels.tile import aligned
from memsim_kernels.vectors import LANES

F16 = NDArray[np.float16]


@helper
def _unpack_rows(w: F32, first: int, rows: int, columns: int, q: U32, scales: U16, group_size: int, row: int) -> None:
    """Write ``rows`` rows of the packed matrix, from ``row`` on, to the flat ``w`` from its row ``first`` on."""
    whole = columns // LANES * LANES
    unpack_block(w, first * columns, columns, q, scales, group_size, row, rows, 0, whole)
    if columns > whole:
        rest = aligned(rows * LANES)
        unpack_block(rest, 0, LANES, q, scales, group_size, row, rows, whole, LANES)
        copy_block(w, first * columns + whole, columns, rest, 0, LANES, rows, columns - whole, 0, np.float32(1.0))


@kernel(WRITE_2D, READ_Q, READ_SCALES, INT)
def _unpack(w: F32, q: U32, scales: U16, group_size: int) -> None:
    flat_w, (count, columns) = w.reshape(-1), w.shape
    for panel in prange((count + LANES - 1) // LANES):
        row = panel * LANES
        _unpack_rows(flat_w, row, min(LANES, count - row), columns, q, scales, group_size, row)


@kernel(WRITE_2D, READ_IDS, READ_Q, READ_SCALES, INT, FLOAT)
def _embed(y: F32, ids: U32, q: U32, scales: U16, group_size: int, scale: float) -> None:
    flat_y, columns = y.reshape(-1), y.shape[1]
    for t in prange(y.shape[0]):
        row = int(ids[t])
        if row < q.shape[0] * LANES:
            _unpack_rows(flat_y, t, 1, columns, q, scales, group_size, row)
            for c in range(t * columns, (t + 1) * columns):
                flat_y[c] *= np.float32(scale)
        else:
            flat_y[t * columns : (t + 1) * columns] = np.float32(np.nan)


def unpack_q4(w: F32, q: U32, scales: F16, group_size: int) -> None:
    """Unpack a packed matrix.

    Args:
        w: [N, K], written.
        q: uint32 (see ``levels``).
        scales: float16, and its offsets.
        group_size: Columns that share a scale, a multiple of 16.
    """
    _unpack(w, q, scales.view(np.uint16), group_size)


def embedding_q4_forward(y: F32, ids: U32, q: U32, scales: F16, group_size: int, scale: float) -> None:
    """Look up one row of a packed embedding per token, times ``scale``.

    Args:
        y: [T, C], written. A row whose id is beyond the packed rows becomes NaN.
        ids: uint32 [T].
        q: uint32 (see ``levels``).
        scales: float16, and its offsets.
        group_size: Columns that share a scale, a multiple of 16.
        scale: The factor on every row.
    """
    _embed(y, ids, q, scales.view(np.uint16), group_size, scale)
