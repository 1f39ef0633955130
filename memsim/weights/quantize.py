"""Symmetric INT4 quantisation of matrices into the panels of ``memsim.models.parts``, and back.

weight[n, k] ~ q[n, k] * scale[n, k // group_size] with q in -7 ... 7 and scale = max |weight of the group| / 7. Where
the source stores levels of its own and keeping them loses no more, q in -8 ... 7 and the scale are the source's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.models.parts import ROWS_PER_PANEL

_LARGEST_Q = 7
_LARGEST_SCALE = float(np.finfo(np.float16).max)

_SMALLEST_LEVEL, _LARGEST_LEVEL = -8, 7

Packed = NDArray[np.uint32]
Scales = NDArray[np.float16]
Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows as a quantised source stores them: value = level * scale of its group, exactly or nearly.

    Attributes:
        levels: int8 [N, K], which may be outside -8 ... 7.
        scales: float32 [N, K / group_size], of any sign.
        group_size: Columns that share a scale; K is a multiple of it.
    """

    levels: NDArray[np.int8]
    scales: Rows
    group_size: int


def _padded(rows: Rows, group_size: int) -> Rows:
    """Return ``rows`` with zero rows up to a whole panel and zero columns up to a whole group."""
    n_rows, n_columns = rows.shape
    shape = (n_rows + -n_rows % ROWS_PER_PANEL, n_columns + -n_columns % group_size)
    if shape == rows.shape:
        return rows
    padded = np.zeros(shape, np.float32)
    padded[:n_rows, :n_columns] = rows
    return padded


def _row_scales(groups: NDArray[np.float32], name: str) -> Scales:
    """Return the scales of ``groups`` [N, KG, G] as [N, KG]."""
    largest = np.abs(groups).max(axis=2)
    if not np.isfinite(largest).all():  # max hands on a NaN
        raise InputError(f"{name} holds NaN or infinite weights; the checkpoint is corrupt")
    scales: Rows = largest / np.float32(_LARGEST_Q)
    if scales.max(initial=0.0) > _LARGEST_SCALE:
        raise InputError(
            f"{name} holds a weight of magnitude {largest.max():.3g}; INT4 with float16 scales reaches "
            f"{_LARGEST_Q * _LARGEST_SCALE:.3g}; the checkpoint is corrupt"
        )
    return scales.astype(np.float16)


def quantize(rows: Rows, group_size: int, name: str, grid: Grid | None = None) -> tuple[Packed, Scales]:
    """Quantise ``rows`` [N, K] of a matrix to INT4.

    Args:
        rows: Float32 weights; a chunk of a larger matrix must have a multiple of 16 rows, unless it is the last.
        group_size: Columns that share a scale.
        name: What error messages call the tensor.
        grid: The same rows as the source's own levels. A group keeps them where that loses no more than new ones, so
            that levels in -8 ... 7 with a float16 scale are taken over bit for bit. Unused when its groups are
            smaller than ``group_size``.

    Returns:
        ``q`` uint32 [N16, K8, 16] and ``scales`` float16 [KG, 16 N16], as ``memsim.models.parts`` describes them. A
        group so small that its scale rounds to zero in float16 becomes zero.

    Raises:
        InputError: NaN or infinite weights, or some too large for a float16 scale.
    """
    groups = _padded(rows, group_size)
    n_rows = len(groups)
    groups = groups.reshape(n_rows, -1, group_size)
    scales = _row_scales(groups, name)
    q = _rounded(groups, scales)
    if grid is not None and grid.group_size % group_size == 0:
        _keep_grid(q, scales, groups, grid)
    return _pack_nibbles(q.reshape(n_rows, -1)), np.ascontiguousarray(scales.T)


def _rounded(groups: NDArray[np.float32], scales: Scales) -> NDArray[np.int8]:
    """Return the nearest levels of ``groups`` [N, KG, G] for ``scales`` [N, KG]."""
    # Against the scale as stored, in float16: what the reader multiplies with. A zero scale gives zeros. A product
    # with 1 / scale would be faster but misses ties, which are common among bfloat16 weights.
    divisors = np.where(scales > 0, scales, np.inf).astype(np.float32)
    scaled = groups / divisors[:, :, None]
    np.rint(scaled, out=scaled)
    # A scale that float16 rounded down far (a subnormal) leaves quotients above 7.
    np.clip(scaled, -_LARGEST_Q, _LARGEST_Q, out=scaled)
    return scaled.astype(np.int8)


def _keep_grid(q: NDArray[np.int8], scales: Scales, groups: NDArray[np.float32], grid: Grid) -> None:
    """Put the levels and scales of ``grid`` into ``q`` [N, KG, G] and ``scales`` [N, KG] where they lose no more."""
    n_rows, group_size = len(grid.levels), groups.shape[2]
    levels = np.clip(grid.levels, _SMALLEST_LEVEL, _LARGEST_LEVEL).reshape(n_rows, -1, group_size)
    with np.errstate(over="ignore"):  # a scale beyond float16 becomes infinite, and loses
        own = np.repeat(grid.scales, grid.group_size // group_size, axis=1).astype(np.float16)
    keep = _loss(levels, own, groups[:n_rows]) <= _loss(q[:n_rows], scales[:n_rows], groups[:n_rows])
    q[:n_rows][keep] = levels[keep]
    scales[:n_rows][keep] = own[keep]


def _loss(q: NDArray[np.int8], scales: Scales, groups: NDArray[np.float32]) -> Rows:
    """Return the squared error of each group [N, KG]; NaN where a scale is infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = q * scales.astype(np.float32)[:, :, None] - groups
        loss: Rows = np.einsum("nkg,nkg->nk", difference, difference)
    return loss


def _pack_nibbles(q: NDArray[np.int8]) -> Packed:
    """Pack q [16 N16, K] into dwords [N16, K8, 16]."""
    pairs = (q.view(np.uint8) & 0xF).view("<u2")  # an even column in the low byte, its odd neighbour in the high one
    nibbles = (pairs | pairs >> 4).astype(np.uint8)
    dwords = nibbles.view("<u4").reshape(-1, ROWS_PER_PANEL, q.shape[1] // 8)
    return np.ascontiguousarray(dwords.transpose(0, 2, 1))


def dequantize(q: Packed, scales: Scales, n_rows: int, n_columns: int) -> Rows:
    """Return the float32 matrix [n_rows, n_columns] that ``q`` [N16, K8, 16] and ``scales`` [KG, 16 N16] store."""
    n_panels, n_dwords, _ = q.shape
    dwords = np.ascontiguousarray(q.transpose(0, 2, 1), dtype="<u4")
    nibbles = dwords.reshape(n_panels * ROWS_PER_PANEL, n_dwords).view(np.int8)
    rows = np.empty((n_panels * ROWS_PER_PANEL, n_dwords * 8), np.float32)
    # Arithmetic shifts of signed bytes extend the sign of each nibble.
    rows[:, 0::2] = (nibbles << 4) >> 4
    rows[:, 1::2] = nibbles >> 4
    groups = rows.reshape(len(rows), len(scales), -1)
    groups *= scales.T.astype(np.float32)[:, :, None]
    return rows[:n_rows, :n_columns]
