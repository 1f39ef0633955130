"""A matrix of an MLX directory, quantised affinely: weight = scale * level + bias, read as rows.

``<name>.weight`` is uint32 [N, K * bits / 32]: the levels of a row as one stream of bits, lowest first.
``<name>.scales`` and ``<name>.biases`` are [N, K / group_size]. Source: ``mlx.core.quantize`` and ``dequantize``.

Levels of up to 4 bits are our affine format, in the same groups; its scales and biases are float16, which holds those
of a real model exactly. MLX chooses a bias that is a whole multiple of its scale, so that 0 is a level too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.ir.matrix_format import MatrixFormat
from memsim.weights.quantize import Grid
from memsim.weights.readers.plain_tensor import FLOAT_DTYPES, read_floats
from memsim.weights.readers.source import Chunk, RowReader, opened, read_at
from memsim.weights.tensor_file import TensorEntry

_BITS = (2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (32, 64, 128)
MLX_PARTS = ("scales", "biases")
"""What lies beside the levels of a matrix."""

_GRID_BITS = 4  # finer levels are not those of any format

Place = tuple[Path, TensorEntry]


@dataclass(frozen=True, slots=True)
class MlxTensor:
    """A ``SourceTensor`` made of packed levels, scales and biases.

    Attributes:
        name: Hugging Face's name.
        rows: (out_features, in_features).
        bits: Of a level.
        group_size: Columns that share a scale and a bias.
        levels: The packed levels and their file.
        scales: The scales and their file.
        biases: The biases and their file.
    """

    name: str
    rows: tuple[int, int]
    bits: int
    group_size: int
    levels: Place
    scales: Place
    biases: Place

    @property
    def stored(self) -> str:
        """Its format."""
        return f"mlx{self.bits}"

    @property
    def format(self) -> MatrixFormat:
        """Affine in the same groups, or 8 bits for finer levels."""
        return MatrixFormat("affine", self.group_size) if self.bits <= _GRID_BITS else MatrixFormat("symmetric8", 32)

    @property
    def n_bytes(self) -> int:
        """Size of its three parts in the files."""
        return sum(entry.n_bytes for _, entry in (self.levels, self.scales, self.biases))

    @contextmanager
    def open(self) -> Iterator[RowReader]:
        """Open its files for reading by rows.

        Raises:
            InputError: One cannot be read.
        """
        with opened(self.levels[0]) as levels, opened(self.scales[0]) as scales, opened(self.biases[0]) as biases:
            yield _MlxReader(self, levels, scales, biases)


def mlx_tensor(name: str, shape: tuple[int, int], found: Mapping[str, Place], directory: Path) -> MlxTensor:
    """Check the three parts of matrix ``name`` (with ``.weight``) against each other and ``shape`` [N, K].

    Bits and group size follow from the shapes, since a directory may mix them.

    Raises:
        InputError: A part is missing, or has a type or shape that MLX's affine format does not have.
    """
    stem = name.removesuffix(".weight")
    missing = [part for kind in MLX_PARTS if (part := f"{stem}.{kind}") not in found]
    if missing:
        raise InputError(f"{directory}: {name!r} is u32 but has no {missing[0]!r}; memsim reads MLX's affine format")
    levels, scales, biases = found[name], found[f"{stem}.scales"], found[f"{stem}.biases"]
    n_rows, n_columns = shape
    bits = _ratio(32 * _columns(levels, n_rows), n_columns, _BITS)
    group_size = _ratio(n_columns, _columns(scales, n_rows), _GROUP_SIZES)
    if bits is None or group_size is None or biases[1].shape != scales[1].shape:
        shapes = ", ".join(str(list(entry.shape)) for _, entry in (levels, scales, biases))
        raise InputError(f"{levels[0]}: {name!r} [{n_rows}, {n_columns}] cannot be levels, scales, biases {shapes}")
    if not {scales[1].dtype, biases[1].dtype} <= set(FLOAT_DTYPES):
        raise InputError(
            f"{scales[0]}: scales of {name!r} are {scales[1].dtype}; memsim reads {', '.join(FLOAT_DTYPES)}"
        )
    return MlxTensor(name, shape, bits, group_size, levels, scales, biases)


def _columns(place: Place, n_rows: int) -> int:
    """Return the second dimension of a matrix of ``n_rows`` rows, or 0 for another shape."""
    shape = place[1].shape
    return shape[1] if len(shape) == 2 and shape[0] == n_rows else 0


def _ratio(whole: int, part: int, allowed: tuple[int, ...]) -> int | None:
    return whole // part if part and whole % part == 0 and whole // part in allowed else None


@dataclass(frozen=True, slots=True)
class _MlxReader:
    tensor: MlxTensor
    levels: int
    scales: int
    biases: int

    def read(self, first: int, count: int) -> Chunk:
        tensor, shape = self.tensor, (count, self.tensor.rows[1])
        groups = (count, shape[1] // tensor.group_size)
        start = first * groups[1]
        scales = read_floats(self.scales, tensor.scales[1], start, groups, f"{tensor.scales[0]}: {tensor.name}")
        biases = read_floats(self.biases, tensor.biases[1], start, groups, f"{tensor.biases[0]}: {tensor.name}")
        levels = self._levels(first, count)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are refused by the quantiser
            values = levels.reshape(*groups, -1) * scales[:, :, None] + biases[:, :, None]
        if tensor.bits > _GRID_BITS:
            return Chunk(values.reshape(shape))
        return Chunk(values.reshape(shape), Grid(levels.astype(np.int16), scales, tensor.group_size, biases))

    def _levels(self, first: int, count: int) -> NDArray[np.uint8]:
        """Return the levels of some rows, [count, K]."""
        path, entry = self.tensor.levels
        packed = np.empty((count, entry.shape[1] * 4), np.uint8)
        read_at(self.levels, entry.start + first * packed.shape[1], packed, f"{path}: {self.tensor.name}")
        if self.tensor.bits == 4:
            return np.stack([packed & 15, packed >> 4], axis=2).reshape(count, -1)
        bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(count, -1, self.tensor.bits)
        return np.packbits(bits, axis=2, bitorder="little").reshape(count, -1)
