"""The header of a GGUF file, read in bounds: metadata, and where each tensor lies.

The ``gguf`` library's reader keeps an array object for every token of the vocabulary (262,144 tokens and merges: 42 s,
1.1 GB) and counts as far as a hostile file says, so only its table of types and its dequantisation are used. Format:
magic, version, counts, key-value pairs, tensor descriptions, and, from a multiple of ``general.alignment``, the data.
Source: ggml's docs/gguf.md.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.reading import open_regular
from memsim.weights.what_it_is import lfs_pointer

Value = int | float | bool | str | tuple[int | float | bool, ...] | tuple[str, ...]

_MAX_HEADER_BYTES = 128 << 20
_MAX_TEXT_BYTES = 1 << 16  # longer texts (chat templates) are skipped
_MAX_NAME_BYTES = 1 << 10
_MAX_ARRAY = 1 << 12  # longer arrays (vocabularies) are skipped
_MAX_ALIGNMENT = 1 << 20
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
_SMALLEST_PAIR_BYTES, _SMALLEST_TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


@dataclass(frozen=True, slots=True)
class GgufEntry:
    """Where one tensor lies in its file.

    Attributes:
        kind: ggml's type, in lower case: ``q4_0``, ``f32``, ...
        shape: Lengths of its dimensions, rows first.
        start: Offset of the first byte from the beginning of the file.
        row_bytes: Size of a row.
    """

    kind: str
    shape: tuple[int, ...]
    start: int
    row_bytes: int

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata (without long texts and arrays) and tensors by their names in the file."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufEntry]


def gguf_library() -> Any:
    """Import the ``gguf`` package.

    Raises:
        InputError: It is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("reading GGUF needs the package gguf; run `pip install 'memsim[gguf]'`") from None
    return gguf


def read_gguf_header(path: Path, keep: frozenset[str] = frozenset()) -> GgufHeader:
    """Read and check the header of an untrusted GGUF file.

    Args:
        path: The file.
        keep: Metadata that are kept although they are long, such as the vocabulary.

    Raises:
        InputError: Unreadable, truncated, no GGUF, or tensors of an unknown type, outside the file or overlapping; or
            the ``gguf`` package is missing.
    """
    try:
        with open_regular(path) as file:
            return _Reader(file, path, keep).header()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


class _Reader:
    """Reads a header front to back; every length is checked against what is left before it is used."""

    def __init__(self, file: BinaryIO, path: Path, keep: frozenset[str]) -> None:
        self._file, self._path, self._keep = file, path, keep
        self._file_bytes = os.fstat(file.fileno()).st_size
        self._end = min(self._file_bytes, _MAX_HEADER_BYTES)
        self._position = 0

    def header(self) -> GgufHeader:
        if self._file_bytes < 24 or self._take(4) != b"GGUF":
            raise InputError(lfs_pointer(self._path) or f"{self._path} is not a GGUF file")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise InputError(f"{self._path} is GGUF version {version}; memsim reads 2 and 3, little-endian")
        n_tensors = self._count(_SMALLEST_TENSOR_BYTES, "tensors")
        n_pairs = self._count(_SMALLEST_PAIR_BYTES, "metadata pairs")
        metadata: dict[str, Value] = {}
        for _ in range(n_pairs):
            key = self._name()
            value = self._value(self._scalar("<I"), key in self._keep)
            if key in metadata:
                raise InputError(f"{self._path}: metadata {shown(key)} appears twice")
            if value is not None:
                metadata[key] = value
        described = [(self._name(), *self._tensor()) for _ in range(n_tensors)]
        alignment = self._alignment(metadata)
        data_start = self._position + -self._position % alignment
        tensors = {name: self._entry(name, kind, dims, data_start + offset) for name, kind, dims, offset in described}
        if len(tensors) < n_tensors:
            raise InputError(f"{self._path} describes a tensor twice")
        self._check_places(tensors, data_start, alignment)
        return GgufHeader(metadata, tensors)

    def _take(self, n_bytes: int) -> bytes:
        self._skip(n_bytes)
        return self._file.read(n_bytes)

    def _skip(self, n_bytes: int) -> None:
        """Account for ``n_bytes`` of the header."""
        if n_bytes > self._end - self._position:
            raise InputError(f"{self._path} is truncated or corrupt: its header leaves the file at {self._position}")
        self._position += n_bytes

    def _scalar(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _count(self, smallest_bytes: int, what: str) -> int:
        count: int = self._scalar("<Q")
        if count > (self._end - self._position) // smallest_bytes:
            raise InputError(f"{self._path} claims {count} {what}, more than fit into {self._file_bytes} bytes")
        return count

    def _text(self, max_bytes: int) -> str | None:
        """Return a string, or None for one that is too long."""
        n_bytes = self._scalar("<Q")
        if n_bytes > max_bytes:
            self._skip(n_bytes)
            self._file.seek(self._position)
            return None
        return self._take(n_bytes).decode(errors="backslashreplace")

    def _name(self) -> str:
        name = self._text(_MAX_NAME_BYTES)
        if name is None:
            raise InputError(f"{self._path} holds a name of over {_MAX_NAME_BYTES} bytes; it is corrupt")
        return name

    def _value(self, kind: int, keep: bool = False) -> Value | None:
        """Return a metadata value, or None for one that is long, unless that is to be kept."""
        if kind == _STRING:
            return self._text(_MAX_TEXT_BYTES)
        if kind == _ARRAY:
            return self._array(self._scalar("<I"), keep)
        if kind not in _SCALARS:
            raise InputError(f"{self._path} has metadata of the unknown type {kind}; it is corrupt")
        value = self._scalar(_SCALARS[kind])
        # The shortest number that is this float32: what was written was 1e-6 and not 9.99999997e-07.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def _array(self, kind: int, keep: bool) -> Value | None:
        if kind == _STRING:
            count = self._count(8, "strings")
            if keep:
                return tuple(self._name() for _ in range(count))
            for _ in range(count):
                self._text(0)
            return None
        if kind not in _SCALARS:
            raise InputError(f"{self._path} has an array of the unknown type {kind}; it is corrupt")
        item_bytes = struct.calcsize(_SCALARS[kind])
        count = self._count(item_bytes, "array items")
        if count <= _MAX_ARRAY:
            return tuple(self._value(kind) for _ in range(count))  # type: ignore[return-value]  # scalars
        if keep:
            return struct.unpack(f"<{count}{_SCALARS[kind][1]}", self._take(count * item_bytes))
        self._skip(count * item_bytes)
        self._file.seek(self._position)
        return None

    def _tensor(self) -> tuple[int, tuple[int, ...], int]:
        """Return type, dimensions (rows first) and offset in the data of one tensor."""
        n_dimensions = self._scalar("<I")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise InputError(f"{self._path} has a tensor of {n_dimensions} dimensions; it is corrupt")
        dims = struct.unpack(f"<{n_dimensions}Q", self._take(8 * n_dimensions))
        return self._scalar("<I"), dims[::-1], self._scalar("<Q")

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise InputError(f"{self._path}: general.alignment must be a power of two, not {shown(alignment)}")
        return alignment

    def _entry(self, name: str, kind: int, shape: tuple[int, ...], start: int) -> GgufEntry:
        library = gguf_library()
        try:
            block, block_bytes = library.GGML_QUANT_SIZES[library.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise InputError(f"{self._path}: tensor {shown(name)} has the unknown type {kind}") from None
        label = library.GGMLQuantizationType(kind).name.lower()
        if shape[-1] % block:
            raise InputError(f"{self._path}: rows of {shape[-1]} do not fit {label} of {shown(name)}")
        return GgufEntry(label, shape, start, shape[-1] // block * block_bytes)

    def _check_places(self, tensors: Mapping[str, GgufEntry], data_start: int, alignment: int) -> None:
        """Check that tensors follow each other as they are described, each at the next multiple, to the file's end.

        ggml's own reader demands the same; so a type or a shape that was changed is seen by what follows.
        """
        due = data_start
        for name, entry in tensors.items():
            end = entry.start + entry.n_bytes
            if end > self._file_bytes:
                raise InputError(
                    f"{self._path}: tensor {shown(name)} ends at byte {end}, behind the end of the file "
                    f"({self._file_bytes} bytes); it is truncated or corrupt"
                )
            if entry.start != due:
                problem = "overlaps the tensor before it" if entry.start < due else "leaves a gap before it"
                raise InputError(
                    f"{self._path}: tensor {shown(name)} {problem}: it begins at byte {entry.start}, not {due}; "
                    f"a type, a shape or an offset is wrong"
                )
            due = end + -end % alignment
        if tensors and self._file_bytes > due:
            raise InputError(f"{self._path} has {self._file_bytes - due} bytes that belong to no tensor; it is corrupt")
