"""Error-compensating rounding (GPTQ, arXiv 2210.17323): each column's rounding error is made up for by those after it.

What a matrix W [N, K] is multiplied with decides what an error costs: with X [T, K] of a text, the change of X W^T is
measured by H = X^T X. Columns are rounded from left to right; after each, the columns to its right change by what
keeps X W^T closest, which the inverse of H tells. A group's scale is chosen when its first column is reached.

A matrix of many columns is treated in stretches of at most STRETCH, as if they did not correlate: H takes 4 K^2 bytes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.ir.matrix_format import MatrixFormat
from memsim.weights.quantize import Packed, Rows, Scales, coded_groups, pack_levels, padded, stacked

STRETCH = 1536
_DAMPING = 0.01
_BLOCK = 128  # columns whose errors wait before the columns beyond them change

Doubles = NDArray[np.float64]


class InputMoments:
    """Sums X^T X over all tokens that a matrix of K columns was multiplied with, a stretch of columns at a time."""

    def __init__(self, n_columns: int) -> None:
        """Start with no token."""
        n_stretches = -(-n_columns // STRETCH)
        width = -(-n_columns // n_stretches)
        width += -width % _BLOCK  # whole groups
        self.stretches = [slice(at, min(at + width, n_columns)) for at in range(0, n_columns, width)]
        self._sums = [np.zeros((own.stop - own.start,) * 2, np.float32) for own in self.stretches]

    def add(self, x: Rows) -> None:
        """Add the tokens of ``x`` [T, K]."""
        for own, total in zip(self.stretches, self._sums, strict=True):
            total += x[:, own].T @ x[:, own]

    def factors(self) -> list[Rows]:
        """Return for each stretch the upper factor U of the damped sums' inverse: H^-1 = U^T U. Drops the sums."""
        found = []
        while self._sums:
            found.append(_inverse_factor(self._sums.pop(0).astype(np.float64)))
        return found


def _inverse_factor(sums: Doubles) -> Rows:
    diagonal = np.arange(len(sums))
    sums[diagonal, diagonal] += max(_DAMPING * float(sums[diagonal, diagonal].mean()), 1e-12)
    # H = L L^T turned about gives an upper factor of H; its inverse is the lower factor of the inverse, turned back.
    turned = np.linalg.cholesky(sums[::-1, ::-1])
    lower = turned[::-1, ::-1]  # upper triangular: H = lower lower^T
    factor: Rows = np.linalg.inv(lower).astype(np.float32)
    return np.triu(factor)


@dataclass(frozen=True, slots=True)
class Compensating:
    """Rounds rows of one matrix; every row by itself.

    Attributes:
        stretches: Of columns.
        factors: Of each stretch, from ``InputMoments.factors``.
    """

    stretches: list[slice]
    factors: list[Rows]

    def quantize(self, rows: Rows, stored: MatrixFormat) -> tuple[Packed, Scales]:
        """Return ``rows`` [N, K] packed, as ``quantize.quantize`` does."""
        whole = padded(rows, stored.group_size)
        levels = np.zeros(whole.shape, np.int16)
        n_groups = whole.shape[1] // stored.group_size
        scales = np.zeros((len(whole), n_groups), np.float16)
        offsets = np.zeros_like(scales) if stored.kind.affine else None
        for own, factor in zip(self.stretches, self.factors, strict=True):
            self._stretch(whole[:, own].copy(), factor, stored, own.start, levels, scales, offsets)
        return pack_levels(levels, stored.kind.bits), stacked(scales, offsets)

    def _stretch(
        self, left: Rows, factor: Rows, stored: MatrixFormat, first: int, levels: NDArray[np.int16],
        scales: Scales, offsets: Scales | None,
    ) -> None:  # fmt: skip
        """Round the columns ``left`` [N, stretch], which change on the way."""
        size, width = stored.group_size, left.shape[1]
        step = max(size, _BLOCK)
        for start in range(0, width, step):
            stop = min(start + step, width)
            errors = np.zeros((len(left), stop - start), np.float32)
            for column in range(start, stop):
                group = (first + column) // size
                if column % size == 0:
                    _choose(left[:, column : min(column + size, width)], stored, group, scales, offsets)
                scale = scales[:, group].astype(np.float32)
                offset = np.float32(0) if offsets is None else offsets[:, group].astype(np.float32)
                level = _nearest(left[:, column] - offset, scale, stored)
                levels[:, first + column] = level
                error = (left[:, column] - (level * scale + offset)) / factor[column, column]
                errors[:, column - start] = error
                left[:, column + 1 : stop] -= error[:, None] * factor[column, column + 1 : stop]
            left[:, stop:] -= errors @ factor[start:stop, stop:]


def _nearest(values: Rows, scale: Rows, stored: MatrixFormat) -> NDArray[np.int16]:
    divisors = np.where(scale != 0, scale, np.float32(np.inf))
    return np.clip(np.rint(values / divisors), *stored.kind.levels).astype(np.int16)


def _choose(group: Rows, stored: MatrixFormat, index: int, scales: Scales, offsets: Scales | None) -> None:
    """Set the scale (and offset) of group ``index`` from its columns [N, <= G] as they are by now."""
    if group.shape[1] < stored.group_size:
        group = np.pad(group, ((0, 0), (0, stored.group_size - group.shape[1])))
    coded = coded_groups(np.ascontiguousarray(group)[:, None, :], stored.kind)
    scales[:, index] = coded.scales[:, 0]
    if offsets is not None and coded.offsets is not None:
        offsets[:, index] = coded.offsets[:, 0]
