"""A plain tensor of a safetensors file, in bf16, f16 or f32, as a source of rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.weights.readers.source import Chunk, OneFileTensor, RowReader, read_at
from memsim.weights.tensor_file import TensorEntry

FLOAT_DTYPES = {"bf16": "<u2", "f16": "<f2", "f32": "<f4"}


@dataclass(frozen=True, slots=True)
class PlainTensor(OneFileTensor[TensorEntry]):
    """A ``SourceTensor`` that is stored as floats.

    Attributes:
        name: Hugging Face's name.
        path: The file that holds it.
        entry: Its place there.
        offset: What is added to its values.
    """

    offset: float = 0.0

    @property
    def stored(self) -> str:
        """Its element type."""
        return self.entry.dtype

    @property
    def format(self) -> None:
        """It has no levels that a format could keep."""
        return None

    def reader(self, descriptor: int) -> RowReader:
        """Return what reads its rows from its open file."""
        return _PlainReader(self, descriptor)


@dataclass(frozen=True, slots=True)
class _PlainReader:
    tensor: PlainTensor
    descriptor: int

    def read(self, first: int, count: int) -> Chunk:
        entry, columns = self.tensor.entry, self.tensor.rows[1]
        what = f"{self.tensor.path}: {self.tensor.name}"
        values = read_floats(self.descriptor, entry, first * columns, (count, columns), what)
        return Chunk(values + np.float32(self.tensor.offset) if self.tensor.offset else values)


def read_floats(
    descriptor: int, entry: TensorEntry, first: int, shape: tuple[int, int], what: str
) -> NDArray[np.float32]:
    """Return elements of a bf16, f16 or f32 tensor as float32 of ``shape``, from its element ``first``.

    Raises:
        InputError: The file ends too early.
    """
    stored = np.empty(shape, FLOAT_DTYPES[entry.dtype])
    read_at(descriptor, entry.start + first * stored.itemsize, stored.reshape(-1).view(np.uint8), what)
    if entry.dtype == "bf16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32, copy=False)
