"""A tensor of a GGUF file as a source of rows, in Hugging Face's order.

Q4_0: a block of 32 columns is a float16 scale d and 16 bytes; byte j holds column j in its low nibble and column
j + 16 in its high one, and the value is (nibble - 8) * d. With groups of 32 that is our INT4, other order of nibbles.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.weights.quantize import Grid
from memsim.weights.readers.gguf_file import GgufEntry, gguf_library
from memsim.weights.readers.source import Chunk, RowReader, as_rows, opened, read_at

GGUF_KINDS = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k")

_Q4_0_COLUMNS, _Q4_0_BYTES = 32, 18


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A ``SourceTensor`` of a GGUF file.

    Attributes:
        name: Hugging Face's name.
        path: The file.
        entry: Its place there.
        rope_head_dim: Rows of a head, where llama.cpp put the two halves that RoPE rotates side by side: row 2 i is
            Hugging Face's row i of the head, row 2 i + 1 its row D/2 + i. None where the order is the same.
    """

    name: str
    path: Path
    entry: GgufEntry
    rope_head_dim: int | None = None

    @property
    def stored(self) -> str:
        """Its type, as ggml calls it."""
        return self.entry.kind

    @property
    def rows(self) -> tuple[int, int]:
        """Its shape as a matrix; a vector is one row."""
        return as_rows(self.entry.shape)

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return self.entry.n_bytes

    @contextmanager
    def open(self) -> Iterator[RowReader]:
        """Open its file for reading by rows.

        Raises:
            InputError: It cannot be read.
        """
        with opened(self.path) as descriptor:
            yield _GgufReader(self, descriptor)


@dataclass(frozen=True, slots=True)
class _GgufReader:
    tensor: GgufTensor
    descriptor: int

    def read(self, first: int, count: int) -> Chunk:
        tensor, library = self.tensor, gguf_library()
        stored = self._stored(first, count)
        kind = library.GGMLQuantizationType[tensor.entry.kind.upper()]
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are refused by the quantiser
            values = library.quants.dequantize(stored, kind).reshape(count, tensor.rows[1])
        if tensor.rope_head_dim and len(tensor.entry.shape) == 1:
            values = values[:, _llama_rows(np.arange(values.shape[1]), tensor.rope_head_dim)]
        return Chunk(values, _q4_0_grid(stored) if tensor.entry.kind == "q4_0" else None)

    def _stored(self, first: int, count: int) -> NDArray[np.uint8]:
        """Return the bytes of some of Hugging Face's rows, [count, row_bytes]."""
        entry = self.tensor.entry
        what = f"{self.tensor.path}: {self.tensor.name}"
        stored = np.empty((count, entry.row_bytes), np.uint8)
        if self.tensor.rope_head_dim is None or len(entry.shape) == 1:
            read_at(self.descriptor, entry.start + first * entry.row_bytes, stored, what)
            return stored
        for row, source in zip(
            stored, _llama_rows(np.arange(first, first + count), self.tensor.rope_head_dim), strict=True
        ):
            read_at(self.descriptor, entry.start + int(source) * entry.row_bytes, row, what)
        return stored


def _llama_rows(rows: NDArray[np.int64], head_dim: int) -> NDArray[np.int64]:
    """Return where llama.cpp keeps Hugging Face's ``rows`` of a q or k projection."""
    in_head = rows % head_dim
    half = head_dim // 2
    return rows - in_head + 2 * (in_head % half) + in_head // half


def _q4_0_grid(stored: NDArray[np.uint8]) -> Grid:
    """Return the levels and scales of rows of Q4_0 blocks."""
    blocks = stored.reshape(len(stored), -1, _Q4_0_BYTES)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0].astype(np.float32)
    bytes_ = blocks[:, :, 2:]
    levels = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=2).astype(np.int8) - np.int8(8)
    return Grid(levels.reshape(len(stored), -1), scales, _Q4_0_COLUMNS)
