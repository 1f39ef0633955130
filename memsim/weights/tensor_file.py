"""Safetensors files: bounded header reading, read-only mapping, and aligned streaming writes.

Over 250 lines: a format's reader and writer are held to each other.

Format: 8 bytes little-endian header length, a JSON header, then the tensors, back to back and without holes. A
hole that alignment needs is therefore itself a tensor, ``_pad<i>`` of type U8.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.json_file import parse_object, shown
from memsim.models.parts import TensorSpec
from memsim.reading import drop_pages, open_regular
from memsim.units import format_bytes
from memsim.weights.what_it_is import lfs_pointer

MAX_HEADER_BYTES = 100_000_000
TENSOR_ALIGNMENT = 64  # a cache line, and one AVX-512 register
DATA_ALIGNMENT = 16_384  # a page: 16 KiB on Apple devices, a multiple of 4 KiB elsewhere
FLUSH_BYTES = 16 << 20
PAD_PREFIX = "_pad"

_ITEM_BYTES = {"bool": 1, "u8": 1, "i8": 1, "f8_e4m3": 1, "f8_e5m2": 1, "f8_e8m0": 1}
_ITEM_BYTES |= {"u16": 2, "i16": 2, "f16": 2, "bf16": 2, "u32": 4, "i32": 4, "f32": 4}
_ITEM_BYTES |= {"u64": 8, "i64": 8, "f64": 8, "c64": 8}
_NUMPY_TYPES = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f16": "<f2", "f32": "<f4", "bf16": "<u2"}
_MAX_DIMENSIONS = 16
_MAX_LENGTH = 1 << 48


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in its file.

    Attributes:
        dtype: Element type: safetensors' name in lower case, such as ``f32`` or ``bf16``.
        shape: Lengths of its dimensions.
        start: Offset of the first byte from the beginning of the **file**.
        n_bytes: Size.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int

    @property
    def end(self) -> int:
        """Offset behind the last byte."""
        return self.start + self.n_bytes


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_LENGTH


def _entry(description: Any, data_start: int, where: str) -> TensorEntry:
    """Check one tensor's description by itself."""
    if not isinstance(description, dict) or not {"dtype", "shape", "data_offsets"} <= set(description):
        raise InputError(f"{where} must have dtype, shape and data_offsets")
    dtype, shape, offsets = description["dtype"], description["shape"], description["data_offsets"]
    if not isinstance(dtype, str) or dtype != dtype.upper() or dtype.lower() not in _ITEM_BYTES:
        raise InputError(f"{where} has the unknown dtype {shown(dtype)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_length, shape)):
        raise InputError(f"{where} has the impossible shape {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_length, offsets)):
        raise InputError(f"{where} has the impossible data_offsets {shown(offsets)}")
    begin, end = offsets
    n_bytes = prod(shape) * _ITEM_BYTES[dtype.lower()]
    if end - begin != n_bytes:
        raise InputError(f"{where}: {dtype} {shape} takes {n_bytes} bytes, but data_offsets span {end - begin}")
    return TensorEntry(dtype.lower(), tuple(shape), data_start + begin, n_bytes)


def _check_coverage(entries: Mapping[str, TensorEntry], data_start: int, file_bytes: int, path: Path) -> None:
    """Check that the tensors tile the data of the file: inside it, no overlap, no hole."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].n_bytes)):
        if entry.end > file_bytes:
            raise InputError(
                f"{path}: tensor {shown(name)} ends at byte {entry.end}, behind the end of the file "
                f"({file_bytes} bytes); it is truncated or corrupt"
            )
        if entry.start != position:
            problem = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            raise InputError(f"{path}: tensor {shown(name)} {problem} at byte {entry.start}")
        position = entry.end
    if position != file_bytes:
        raise InputError(f"{path} has {file_bytes - position} bytes that belong to no tensor")


def read_header(path: Path, max_header_bytes: int = MAX_HEADER_BYTES) -> dict[str, TensorEntry]:
    """Read and check the header of a safetensors file, without reading any tensor.

    Raises:
        InputError: Unreadable, a header that is too long or no valid JSON, or a tensor with an unknown dtype, an
            impossible shape, or bytes that are outside the file, overlap another tensor or do not fit the shape.
    """
    try:
        with open_regular(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or header_bytes > file_bytes - 8:
                truncated = f"{path} is truncated, or not a safetensors file ({file_bytes} bytes)"
                raise InputError(lfs_pointer(path) or truncated)
            if header_bytes > max_header_bytes:
                raise InputError(
                    f"{path} has a header of {format_bytes(header_bytes)}, above {format_bytes(max_header_bytes)}"
                )
            header = parse_object(file.read(header_bytes), f"the header of {path}")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: __metadata__ must be texts by name, not {shown(metadata)}")
    data_start = 8 + header_bytes
    entries = {
        name: _entry(description, data_start, f"{path}: tensor {shown(name)}") for name, description in header.items()
    }
    _check_coverage(entries, data_start, file_bytes, path)
    return entries


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file read-only; pages are read on first touch.

    Raises:
        InputError: Unreadable or empty.
    """
    try:
        with open_regular(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot map {path}: {getattr(error, 'strerror', None) or error}") from error


def view(mapped: mmap.mmap, entry: TensorEntry) -> NDArray[Any]:
    """Return a tensor of a mapped file as a read-only array that shares its pages; bf16 comes as uint16 bits."""
    dtype = np.dtype(_NUMPY_TYPES[entry.dtype])
    return np.frombuffer(mapped, dtype, count=prod(entry.shape), offset=entry.start).reshape(entry.shape)


def layout(
    specs: Mapping[str, TensorSpec],
    tensor_alignment: int = TENSOR_ALIGNMENT,
    data_alignment: int = DATA_ALIGNMENT,
) -> tuple[bytes, dict[str, TensorEntry]]:
    """Lay tensors out in the order of ``specs``, with pad tensors where alignment needs them.

    Returns:
        The first bytes of the file (length and header, up to the data), and every tensor with its place, in order.
    """
    placed: dict[str, tuple[TensorSpec, int]] = {}
    position = 0
    for name, spec in specs.items():
        if gap := -position % tensor_alignment:
            placed[f"{PAD_PREFIX}{len(placed)}"] = (TensorSpec((gap,), "u8"), position)
            position += gap
        placed[name] = (spec, position)
        position += _spec_bytes(spec)
    described = {
        name: {"dtype": spec.dtype.upper(), "shape": spec.shape, "data_offsets": [start, start + _spec_bytes(spec)]}
        for name, (spec, start) in placed.items()
    }
    # "format" tells Hugging Face's loaders that names and shapes follow PyTorch's conventions.
    header = json.dumps({"__metadata__": {"format": "pt"}, **described}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % data_alignment)
    data_start = 8 + len(header)
    entries = {
        name: TensorEntry(spec.dtype, spec.shape, data_start + start, _spec_bytes(spec))
        for name, (spec, start) in placed.items()
    }
    return len(header).to_bytes(8, "little") + header, entries


def _spec_bytes(spec: TensorSpec) -> int:
    return prod(spec.shape) * _ITEM_BYTES[spec.dtype]


def file_bytes(specs: Mapping[str, TensorSpec]) -> int:
    """Return the exact size of the file that ``TensorFileWriter`` writes for ``specs``."""
    head, entries = layout(specs)
    return max((entry.end for entry in entries.values()), default=len(head))


class OpenFile(Protocol):
    """What ``TensorFileWriter`` needs of a file that is open for writing."""

    def write(self, data: memoryview, /) -> object:
        """Append ``data``."""

    def flush(self) -> None:
        """Hand everything to the operating system."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


class TensorFileWriter:
    """Writes a safetensors file front to back in chunks, hashing it on the way.

    At most ``flush_bytes`` of it are dirty (in memory, not yet on disk) at any time, so that the writer's footprint
    does not grow with the file. Tensors come in the order of the specs, each in as many chunks as its producer likes::

        with path.open("wb") as file:
            writer = TensorFileWriter(file, specs)
            writer.write("embed_tokens.q", panel)
            ...
            sha256 = writer.finish()
    """

    def __init__(
        self,
        file: OpenFile,
        specs: Mapping[str, TensorSpec],
        tensor_alignment: int = TENSOR_ALIGNMENT,
        data_alignment: int = DATA_ALIGNMENT,
        flush_bytes: int = FLUSH_BYTES,
    ) -> None:
        """Start the file with its header.

        Args:
            file: An empty binary file, open for writing.
            specs: Every tensor, in the order in which it will be written.
            tensor_alignment: Every tensor starts at a multiple of this; 1 writes no pad tensors.
            data_alignment: The first tensor starts at a multiple of this.
            flush_bytes: How much may wait in memory for the disk.
        """
        self._flush_bytes = flush_bytes
        self._file = file
        self._hash = hashlib.sha256()
        self._flushed = 0
        self.n_bytes = 0
        head, self._entries = layout(specs, tensor_alignment, data_alignment)
        self._pending = list(reversed(self._entries))
        self._append(memoryview(head))

    def write(self, name: str, chunk: NDArray[Any]) -> None:
        """Append the next elements of tensor ``name`` (any shape, C order).

        Raises:
            ValueError: It is not this tensor's turn, or it has another type or fewer elements left.
        """
        entry = self._entries[name]
        self._advance_to(name)
        if chunk.dtype != np.dtype(_NUMPY_TYPES[entry.dtype]) or self.n_bytes + chunk.nbytes > entry.end:
            raise ValueError(f"{chunk.dtype} {chunk.shape} does not fit what is left of {name}: {entry}")
        self._append(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)

    def finish(self) -> str:
        """Check that nothing is missing, bring everything to disk and return the SHA-256 of the file.

        Raises:
            ValueError: A tensor is incomplete.
        """
        self._advance_to(None)
        self._flush()
        return self._hash.hexdigest()

    def _advance_to(self, name: str | None) -> None:
        """Close complete tensors and write pads until ``name`` is the current tensor."""
        while self._pending and self._pending[-1] != name:
            current = self._pending[-1]
            entry = self._entries[current]
            if current.startswith(PAD_PREFIX):
                self._append(memoryview(bytes(entry.n_bytes)))
            if self.n_bytes != entry.end:
                raise ValueError(f"{current} is incomplete: {entry.end - self.n_bytes} bytes missing")
            self._pending.pop()
        if name is not None and not self._pending:
            raise ValueError(f"{name} is already complete")

    def _append(self, data: memoryview) -> None:
        for start in range(0, len(data), self._flush_bytes):
            piece = data[start : start + self._flush_bytes]
            if self.n_bytes + len(piece) - self._flushed > self._flush_bytes:
                self._flush()
            self._file.write(piece)
            self._hash.update(piece)
            self.n_bytes += len(piece)

    def _flush(self) -> None:
        self._file.flush()
        os.fdatasync(self._file.fileno())
        drop_pages(self._file.fileno(), self._flushed, self.n_bytes - self._flushed)
        self._flushed = self.n_bytes
