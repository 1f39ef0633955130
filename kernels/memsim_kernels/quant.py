"""INT4 matrices written out as float32: a whole one, or the rows of an embedding that a batch of tokens needs."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from memsim_kernels.half import half_to_float
from memsim_kernels.jit import F32, INT, READ_IDS, READ_Q, READ_SCALES, U16, U32, WRITE_2D, helper, kernel

F16 = NDArray[np.float16]


@helper
def _unpack_row(out: F32, row: int, q: U32, scales: U16, group_size: int) -> None:
    for k in range(out.size):
        dword = np.int64(q[row // 16, k // 8, row % 16])
        nibble = (dword >> (4 * (k % 8))) & 15
        out[k] = np.float32((nibble ^ 8) - 8) * half_to_float(scales[k // group_size, row])


@kernel(WRITE_2D, READ_Q, READ_SCALES, INT)
def _unpack(w: F32, q: U32, scales: U16, group_size: int) -> None:
    for row in prange(w.shape[0]):
        _unpack_row(w[row], row, q, scales, group_size)


@kernel(WRITE_2D, READ_IDS, READ_Q, READ_SCALES, INT)
def _embed(y: F32, ids: U32, q: U32, scales: U16, group_size: int) -> None:
    for t in prange(y.shape[0]):
        row = np.int64(ids[t])
        if row < q.shape[0] * 16:
            _unpack_row(y[t], row, q, scales, group_size)
        else:
            y[t, :] = np.float32(np.nan)


def unpack_q4(w: F32, q: U32, scales: F16, group_size: int) -> None:
    """Unpack an INT4 matrix.

    Args:
        w: [N, K], written.
        q: uint32 [N16, K8, 16].
        scales: float16 [KG, 16 N16].
        group_size: Columns that share a scale.
    """
    _unpack(w, q, scales.view(np.uint16), group_size)


def embedding_q4_forward(y: F32, ids: U32, q: U32, scales: F16, group_size: int) -> None:
    """Look up one row of a packed embedding per token.

    Args:
        y: [T, C], written. A row whose id is beyond the packed rows becomes NaN.
        ids: uint32 [T].
        q: uint32 [N16, K8, 16].
        scales: float16 [KG, 16 N16].
        group_size: Columns that share a scale.
    """
    _embed(y, ids, q, scales.view(np.uint16), group_size)
