"""A tensor of a GGUF file as a source of rows, in Hugging Face's order.

What ggml stores of a row are blocks: a float16 scale d of 32 columns, in some types a float16 offset m, and levels. In
Q4_0, byte j holds column j in its low nibble and column j + 16 in its high one, and the value is (nibble - 8) * d; in
Q4_1 it is nibble * d + m, in Q5_0 four bytes before have the fifth bits, and Q8_0 has a signed byte a column. A block
of Q4_K has 8 times 32 columns, with scale and offset in 6 bits each of d and m of the whole block. With groups of 32
all of these are our formats, other order of levels. What has groups of 16 is not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.ir.matrix_format import MatrixFormat
from memsim.weights.quantize import Grid
from memsim.weights.readers.gguf_file import GgufEntry, gguf_library
from memsim.weights.readers.source import Chunk, OneFileTensor, RowReader, read_at

GGUF_KINDS = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k")

_COLUMNS = 32
_SYMMETRIC, _AFFINE = MatrixFormat("symmetric", _COLUMNS), MatrixFormat("affine", _COLUMNS)
_EIGHT_BITS = MatrixFormat("symmetric8", _COLUMNS)
_FORMATS = {"f32": None, "f16": None, "bf16": None, "q4_0": _SYMMETRIC, "q4_1": _AFFINE, "q4_k": _AFFINE}
"""The smallest format that keeps what a type holds; others have more than 4 bits, or smaller groups."""


@dataclass(frozen=True, slots=True)
class GgufTensor(OneFileTensor[GgufEntry]):
    """A ``SourceTensor`` of a GGUF file.

    Attributes:
        rope_head_dim: Rows of a head, where llama.cpp put the two halves that RoPE rotates side by side: row 2 i is
            Hugging Face's row i of the head, row 2 i + 1 its row D/2 + i. None where the order is the same.
    """

    rope_head_dim: int | None = None

    @property
    def stored(self) -> str:
        """Its type, as ggml calls it."""
        return self.entry.kind

    @property
    def format(self) -> MatrixFormat | None:
        """The smallest format that keeps its levels; 8 bits where that is none of 4 bits."""
        return _FORMATS.get(self.entry.kind, _EIGHT_BITS)

    def reader(self, descriptor: int) -> RowReader:
        """Return what reads its rows from its open file."""
        return _GgufReader(self, descriptor)


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
        grid = _GRIDS.get(tensor.entry.kind)
        return Chunk(values, grid(stored) if grid else None)

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


def _halves(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    """Return a float16 of each block [N, blocks, bytes] as float32 [N, blocks]."""
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")[:, :, 0].astype(np.float32)


def _nibbles(bytes_: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the levels of blocks of 16 bytes: all low nibbles, then all high ones."""
    return np.concatenate([bytes_ & 15, bytes_ >> 4], axis=2)


def _grid(levels: NDArray[Any], scales: NDArray[np.float32], offsets: NDArray[np.float32] | None = None) -> Grid:
    """Return a grid from levels of blocks [N, blocks, 32]."""
    return Grid(levels.reshape(len(levels), -1).astype(np.int16), scales, _COLUMNS, offsets)


def _q4_0_grid(stored: NDArray[np.uint8]) -> Grid:
    blocks = stored.reshape(len(stored), -1, 18)
    return _grid(_nibbles(blocks[:, :, 2:]).astype(np.int16) - 8, _halves(blocks, 0))


def _q4_1_grid(stored: NDArray[np.uint8]) -> Grid:
    blocks = stored.reshape(len(stored), -1, 20)
    return _grid(_nibbles(blocks[:, :, 4:]), _halves(blocks, 0), _halves(blocks, 2))


def _q5_0_grid(stored: NDArray[np.uint8]) -> Grid:
    blocks = stored.reshape(len(stored), -1, 22)
    fifth = np.unpackbits(blocks[:, :, 2:6], axis=2, bitorder="little")
    levels = _nibbles(blocks[:, :, 6:]).astype(np.int16) + 16 * fifth.astype(np.int16) - 16
    return _grid(levels, _halves(blocks, 0))


def _q8_0_grid(stored: NDArray[np.uint8]) -> Grid:
    blocks = stored.reshape(len(stored), -1, 34)
    return _grid(np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8), _halves(blocks, 0))


def _q4_k_grid(stored: NDArray[np.uint8]) -> Grid:
    """Return the levels of blocks of 256 columns: 4 runs of 32 bytes, each first low nibbles, then high ones."""
    blocks = stored.reshape(len(stored), -1, 144)
    d, least = _halves(blocks, 0), _halves(blocks, 2)
    six = blocks[:, :, 4:16].astype(np.uint8)
    low, high, rest = six[:, :, 0:4], six[:, :, 4:8], six[:, :, 8:12]
    scales = np.concatenate([low & 63, rest & 15 | low >> 6 << 4], axis=2)
    offsets = np.concatenate([high & 63, rest >> 4 | high >> 6 << 4], axis=2)
    runs = blocks[:, :, 16:].reshape(*blocks.shape[:2], 4, 1, _COLUMNS)
    levels = np.concatenate([runs & 15, runs >> 4], axis=3).reshape(len(stored), -1, _COLUMNS)
    scale = (d[:, :, None] * scales).reshape(len(stored), -1)
    return _grid(levels, scale, -(least[:, :, None] * offsets).reshape(len(stored), -1))


_GRIDS: dict[str, Callable[[NDArray[np.uint8]], Grid]] = {
    "q4_0": _q4_0_grid,
    "q4_1": _q4_1_grid,
    "q4_k": _q4_k_grid,
    "q5_0": _q5_0_grid,
    "q8_0": _q8_0_grid,
}
