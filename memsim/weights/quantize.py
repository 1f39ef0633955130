"""Quantisation of matrices into the panels of ``memsim.models.parts``, and back: each weight by itself.

A group of columns gets the scale (and the offset) that its format can reach all its weights with:

``symmetric``   scale = w / -8 for the weight w of largest magnitude, which is exact then; scale = max |w| / 7 where
                that holds every weight exactly, as of weights that were quantised so before.
``affine``      offset = the smallest weight, scale = (largest - smallest) / 15.
``symmetric8``  scale = max |w| / 127.

Where the source stores levels of its own, they are kept if the format has them all and they lose no more.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.ir.matrix_format import ROWS_PER_PANEL, FormatKind, MatrixFormat, symmetric

_LARGEST_HALF = float(np.finfo(np.float16).max)
_UNSIGNED_FROM = 8  # what is added to a signed level of 4 bits to have no sign

Packed = NDArray[np.uint32]
Scales = NDArray[np.float16]
Rows = NDArray[np.float32]
Levels = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows as a quantised source stores them: value = level * scale of its group + offset, exactly or nearly.

    Attributes:
        levels: int16 [N, K], which may be outside what a format has.
        scales: float32 [N, K / group_size], of any sign.
        group_size: Columns that share a scale; K is a multiple of it.
        offsets: float32 [N, K / group_size]; None for a grid that goes through 0.
    """

    levels: Levels
    scales: Rows
    group_size: int
    offsets: Rows | None = None


@dataclass(frozen=True, slots=True)
class Coded:
    """Levels [N, KG, G] of groups, with scales and offsets [N, KG] as they are stored."""

    levels: Levels
    scales: Scales
    offsets: Scales | None = None

    def loss(self, groups: Rows) -> Rows:
        """Return the squared error of each group [N, KG]; NaN where a scale is infinite."""
        with np.errstate(invalid="ignore", over="ignore"):
            difference = self.levels * self.scales.astype(np.float32)[:, :, None]
            if self.offsets is not None:
                difference += self.offsets.astype(np.float32)[:, :, None]
            difference -= groups
            loss: Rows = np.einsum("nkg,nkg->nk", difference, difference)
        return loss

    def take(self, other: "Coded", where: NDArray[np.bool_]) -> None:
        """Become ``other`` in the groups ``where`` [N, KG]."""
        self.levels[where] = other.levels[where]
        self.scales[where] = other.scales[where]
        if self.offsets is not None and other.offsets is not None:
            self.offsets[where] = other.offsets[where]


def quantize(rows: Rows, stored: MatrixFormat | int, name: str, grid: Grid | None = None) -> tuple[Packed, Scales]:
    """Quantise ``rows`` [N, K] of a matrix.

    Args:
        rows: Float32 weights; a chunk of a larger matrix must have a multiple of 16 rows, unless it is the last.
        stored: The format, or the group size of symmetric INT4.
        name: What error messages call the tensor.
        grid: The same rows as the source's own levels. A group keeps them where the format has every one of them and
            they lose no more than new ones, so that what the format can hold is taken over bit for bit. Unused when its
            groups are smaller than the format's.

    Returns:
        ``q`` and ``scales``, as ``memsim.models.parts`` describes them. A group so small that its scale rounds to zero
        in float16 becomes zero, or its offset.

    Raises:
        InputError: NaN or infinite weights, or some too large for a float16 scale.
    """
    own = symmetric(stored) if isinstance(stored, int) else stored
    groups = padded(rows, own.group_size)
    n_rows = len(groups)
    groups = groups.reshape(n_rows, -1, own.group_size)
    require_finite(groups, own.kind, name)
    coded = coded_groups(groups, own.kind)
    if grid is not None and grid.group_size % own.group_size == 0:
        _keep_grid(coded, groups, grid, own.kind)
    return pack_levels(coded.levels.reshape(n_rows, -1), own.kind.bits), stacked(coded.scales, coded.offsets)


def padded(rows: Rows, group_size: int) -> Rows:
    """Return ``rows`` with zero rows up to a whole panel and zero columns up to a whole group."""
    n_rows, n_columns = rows.shape
    shape = (n_rows + -n_rows % ROWS_PER_PANEL, n_columns + -n_columns % group_size)
    if shape == rows.shape:
        return rows
    wider = np.zeros(shape, np.float32)
    wider[:n_rows, :n_columns] = rows
    return wider


def require_finite(groups: Rows, kind: FormatKind, name: str) -> None:
    """Check that a format reaches all weights of an array.

    Raises:
        InputError: NaN or infinite weights, or some too large for a float16 scale.
    """
    largest = float(np.abs(groups).max(initial=0.0))  # max hands on a NaN
    if not np.isfinite(largest):
        raise InputError(f"{name} holds NaN or infinite weights; the checkpoint is corrupt")
    limit = _LARGEST_HALF * (1 if kind.affine else -kind.levels[0])
    if largest > limit:
        raise InputError(
            f"{name} holds a weight of magnitude {largest:.3g}; {kind.name} levels with float16 scales reach "
            f"{limit:.3g}; the checkpoint is corrupt"
        )


def coded_groups(groups: Rows, kind: FormatKind) -> Coded:
    """Return ``groups`` [N, KG, G] rounded, each weight by itself."""
    return _affine(groups) if kind.affine else _symmetric(groups, kind)


def _symmetric(groups: Rows, kind: FormatKind) -> Coded:
    """Return new levels of a format without offsets."""
    smallest, largest = kind.levels
    magnitudes = np.abs(groups)
    best = magnitudes.argmax(axis=2)[:, :, None]
    extremes = np.take_along_axis(groups, best, axis=2)[:, :, 0]
    if kind.bits == 8:
        return _rounded(groups, (np.abs(extremes) / np.float32(largest)).astype(np.float32), kind)
    signed: Rows = extremes / np.float32(smallest)
    coded = _rounded(groups, signed, kind)
    unsigned: Rows = np.minimum(np.abs(extremes) / np.float32(largest), np.float32(_LARGEST_HALF))
    even = _rounded(groups, unsigned, kind)
    coded.take(even, even.loss(groups) == 0)
    return coded


def _affine(groups: Rows) -> Coded:
    """Return new levels of the affine format. Zeros beyond the matrix's columns only widen the range."""
    lowest = groups.min(axis=2).astype(np.float16)
    with np.errstate(over="ignore"):
        spread = groups.max(axis=2) - lowest.astype(np.float32)
        scales = np.minimum(spread / np.float32(15), _LARGEST_HALF).astype(np.float16)
    divisors = np.where(scales > 0, scales, np.inf).astype(np.float32)
    levels = (groups - lowest.astype(np.float32)[:, :, None]) / divisors[:, :, None]
    return Coded(np.clip(np.rint(levels), 0, 15).astype(np.int16), scales, lowest)


def _rounded(groups: Rows, scales: Rows, kind: FormatKind) -> Coded:
    """Return the nearest levels of ``groups`` [N, KG, G] for ``scales`` [N, KG]."""
    halves = scales.astype(np.float16)
    # Against the scale as stored, in float16: what the reader multiplies with. A zero scale gives zeros. A product
    # with 1 / scale would be faster but misses ties, which are common among bfloat16 weights.
    divisors = np.where(halves != 0, halves, np.inf).astype(np.float32)
    scaled = groups / divisors[:, :, None]
    np.rint(scaled, out=scaled)
    # A scale that float16 rounded down far (a subnormal) leaves quotients outside.
    np.clip(scaled, *kind.levels, out=scaled)
    return Coded(scaled.astype(np.int16), halves)


def _keep_grid(coded: Coded, groups: Rows, grid: Grid, kind: FormatKind) -> None:
    """Put the source's own levels, scales and offsets into ``coded`` where the format has them and they lose no more.

    Levels that a format lacks are never clipped: that would cost the outliers, which matter most.
    """
    n_rows, group_size = len(grid.levels), groups.shape[2]
    repeats = grid.group_size // group_size
    levels = grid.levels.reshape(n_rows, -1, group_size)
    scales, offsets = np.repeat(grid.scales, repeats, axis=1), None
    if grid.offsets is not None:
        offsets = np.repeat(grid.offsets, repeats, axis=1)
    if kind.affine and offsets is None:
        levels, offsets = levels + np.int16(_UNSIGNED_FROM), scales * np.float32(-_UNSIGNED_FROM)
    elif not kind.affine and offsets is not None:
        levels, offsets = levels + _whole_steps(scales, offsets)[:, :, None], None
    with np.errstate(over="ignore"):  # a scale beyond float16 becomes infinite, and loses
        own = Coded(levels, scales.astype(np.float16), None if offsets is None else offsets.astype(np.float16))
    new = Coded(coded.levels[:n_rows], coded.scales[:n_rows], None if coded.offsets is None else coded.offsets[:n_rows])
    smallest, largest = kind.levels
    inside = (levels >= smallest).all(axis=2) & (levels <= largest).all(axis=2)
    new.take(own, inside & (own.loss(groups[:n_rows]) <= new.loss(groups[:n_rows])))


def _whole_steps(scales: Rows, offsets: Rows) -> Levels:
    """Return offsets in whole scales, as MLX chooses them: levels are counted from 0 then, which is a level too."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.rint(offsets / scales)
    # One that is no such multiple gives levels that lose against new ones.
    whole: Levels = np.clip(np.nan_to_num(steps), -256, 255).astype(np.int16)
    return whole


def stacked(scales: Scales, offsets: Scales | None) -> Scales:
    """Return scales [N, KG] as [KG, N]; with offsets [2 KG, N]: for each group a row of scales, then one of offsets."""
    if offsets is None:
        return np.ascontiguousarray(scales.T)
    pairs = np.stack([scales.T, offsets.T], axis=1)
    return np.ascontiguousarray(pairs.reshape(-1, pairs.shape[2]))


def pack_levels(levels: Levels, bits: int) -> Packed:
    """Pack levels [16 N16, K] into dwords [N16, K bits / 32, 16], the lowest column in the lowest bits."""
    stored = levels.astype(np.uint8)  # two's complement of a negative one
    if bits == 4:
        pairs = (stored & 0xF).view("<u2")  # an even column in the low byte, its odd neighbour in the high one
        stored = (pairs | pairs >> 4).astype(np.uint8)
    dwords = stored.view("<u4").reshape(-1, ROWS_PER_PANEL, levels.shape[1] * bits // 32)
    return np.ascontiguousarray(dwords.transpose(0, 2, 1))


def unpack_levels(q: Packed, kind: FormatKind) -> Rows:
    """Return the levels [16 N16, K] in ``q`` as float32."""
    n_panels, n_dwords, _ = q.shape
    dwords = np.ascontiguousarray(q.transpose(0, 2, 1), dtype="<u4").reshape(n_panels * ROWS_PER_PANEL, n_dwords)
    if kind.bits == 8:
        return dwords.view(np.int8).astype(np.float32)
    # Arithmetic shifts of signed bytes extend the sign of each nibble.
    nibbles = dwords.view(np.uint8 if kind.affine else np.int8)
    levels = np.empty((len(nibbles), n_dwords * 8), np.float32)
    levels[:, 0::2] = nibbles & 15 if kind.affine else (nibbles << 4) >> 4
    levels[:, 1::2] = nibbles >> 4
    return levels


def dequantize(q: Packed, scales: Scales, n_rows: int, n_columns: int, stored: MatrixFormat | None = None) -> Rows:
    """Return the float32 matrix [n_rows, n_columns] that ``q`` and ``scales`` store; as symmetric INT4 by default."""
    kind = (symmetric(32) if stored is None else stored).kind
    rows = unpack_levels(q, kind)
    factors = scales.reshape(-1, kind.rows_a_group, scales.shape[1]).astype(np.float32)
    groups = rows.reshape(len(rows), len(factors), -1)
    groups *= factors[:, 0].T[:, :, None]
    if kind.affine:
        groups += factors[:, 1].T[:, :, None]
    return rows[:n_rows, :n_columns]
