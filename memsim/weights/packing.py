"""From a checkpoint of any format to a pack, streamed by rows: the footprint does not depend on a matrix's size.

Over 250 lines: a matrix is read, rounded, written and judged in one stream.
"""

import os
import shutil
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.files import atomic_write, require_free, write_text
from memsim.ir.matrix_format import ROWS_PER_PANEL, MatrixFormat
from memsim.models.parts import matrices, packed_matrix, part_names, vectors
from memsim.progress_types import BytesProgress
from memsim.reading import open_regular
from memsim.staged_directory import locked, staged_directory
from memsim.units import format_bytes
from memsim.weights.compensation import Compensating
from memsim.weights.pack import Pack, open_pack, part_file_name
from memsim.weights.pack_writer import PackWriter, pack_bytes
from memsim.weights.quantize import Packed, Rows, Scales, dequantize, quantize, require_finite
from memsim.weights.readers.formats import open_source
from memsim.weights.readers.source import Checkpoint, RowReader, SourceTensor
from memsim.weights.recipe import Recipe, recipe_of
from memsim.weights.tensor_file import TensorFileWriter
from memsim.weights.tokenizers.directory_tokenizer import CONFIG_FILE, TOKENIZER_FILE

_CHUNK_WEIGHTS = 1 << 20  # 4 MiB of float32 rows, some five times that with all temporaries
_KEPT_SCALES_BYTES = 64 << 20
_MAX_TOKENIZER_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class TensorError:
    """What quantising one matrix lost.

    Attributes:
        name: Hugging Face's name.
        shape: (out_features, in_features).
        original: What the checkpoint holds: ``bf16``, ``q4_0``, ...
        stored: What the pack holds.
        squared_error: Sum of (stored - original)^2.
        squared_norm: Sum of original^2.
        max_error: Largest |stored - original|.
    """

    name: str
    shape: tuple[int, int]
    original: str
    stored: MatrixFormat
    squared_error: float
    squared_norm: float
    max_error: float

    @property
    def relative_error(self) -> float:
        """||stored - original|| / ||original||, 0 for a matrix of zeros."""
        return sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


@dataclass(frozen=True, slots=True)
class PackReport:
    """A finished pack and the quantisation error of each of its matrices, in forward order."""

    pack: Pack
    errors: tuple[TensorError, ...]

    @property
    def relative_error(self) -> float:
        """Error over all matrices together."""
        total = sum(error.squared_norm for error in self.errors)
        return sqrt(sum(error.squared_error for error in self.errors) / total) if total else 0.0


class Rounding(Protocol):
    """Decides how the weights of each part are rounded; parts come in forward order."""

    def begin(self, part: str) -> None:
        """Prepare for the matrices of ``part``."""

    def rounding(self, name: str) -> Compensating | None:
        """Return how matrix ``name`` of the part is rounded; None for each weight by itself."""

    def end(self, part: str, path: Path) -> None:
        """Learn that the part is in the file ``path``."""


def pack_checkpoint(source: Path, out: Path, recipe: Recipe | int, progress: BytesProgress) -> PackReport:
    """Quantise the checkpoint ``source`` into the pack ``out``.

    Args:
        source: A Hugging Face or MLX directory, or a GGUF file, perhaps with ``tokenizer.json`` beside it.
        out: Must not exist; it appears only when it is complete.
        recipe: How its matrices are to be stored; a number is the group size of symmetric INT4.
        progress: Called with (label, source bytes done, source bytes in all).

    Raises:
        InputError: ``out`` exists, the disk is too small (checked first), or the checkpoint is not usable.
    """
    return pack_opened(open_source(source), out, recipe, progress)


def pack_opened(
    checkpoint: Checkpoint, out: Path, recipe: Recipe | int, progress: BytesProgress, rounding: Rounding | None = None
) -> PackReport:
    """Quantise an opened checkpoint as ``pack_checkpoint`` does.

    Raises:
        InputError: As there.
    """
    out = out.absolute()
    _refuse_existing(out)
    with locked(out):
        _refuse_existing(out)  # another process may have made it meanwhile
        return write_packed(checkpoint, out, recipe, progress, rounding)


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise InputError(f"{out} exists already; choose another directory or delete it")


def write_packed(
    checkpoint: Checkpoint, out: Path, recipe: Recipe | int, progress: BytesProgress, rounding: Rounding | None = None
) -> PackReport:
    """Quantise an opened checkpoint into ``out``; call this while holding ``staging.locked(out)``.

    Raises:
        InputError: As ``pack_checkpoint``.
    """
    total, done = checkpoint.n_bytes, 0
    config, formats = checkpoint.config, recipe_of(recipe).formats(checkpoint)
    errors = []
    with staged_directory(out) as staging:
        found = checkpoint.tokenizer()
        beside = checkpoint.directory / CONFIG_FILE
        tokenizer_bytes = _size(beside) + (len(found.text.encode()) if found.text else 0)
        require_free(staging, pack_bytes(config, formats) + tokenizer_bytes, "the pack")
        pack = PackWriter(staging, config, formats)
        for part in part_names(config):
            if rounding is not None:
                rounding.begin(part)
            with pack.part(part) as writer:
                for name in matrices(config, part):
                    tensor = checkpoint.tensors[part, f"{name}.weight"]
                    report = _Step(progress, tensor.name, done, total)
                    rounded = rounding.rounding(name) if rounding is not None else None
                    errors.append(_pack_matrix(writer, name, tensor, formats.of(part, name), report, rounded))
                    done += tensor.n_bytes
                for name in vectors(config, part):
                    tensor = checkpoint.tensors[part, name]
                    writer.write(name, _read_vector(tensor))
                    done += tensor.n_bytes
                    progress(tensor.name, done, total)
            if rounding is not None:
                rounding.end(part, staging / part_file_name(part))
        if beside.is_file():
            _copy(beside, staging / CONFIG_FILE)
        if found.text is not None:
            write_text(staging / TOKENIZER_FILE, found.text)
        pack.finish("packed", eos_token_id=checkpoint.eos_token_id, tokenizer=_printable(found.origin))
    return PackReport(open_pack(out), tuple(errors))


@dataclass(frozen=True, slots=True)
class _Step:
    """Progress inside one tensor."""

    progress: BytesProgress
    label: str
    done_before: int
    total: int

    def at(self, n_bytes: int) -> None:
        self.progress(self.label, self.done_before + n_bytes, self.total)


def _pack_matrix(
    writer: TensorFileWriter,
    name: str,
    tensor: SourceTensor,
    stored: MatrixFormat,
    step: _Step,
    rounded: Compensating | None,
) -> TensorError:
    """Quantise one matrix chunk by chunk: q as the rows come, scales (stored by column) at the end."""
    n_rows, n_columns = tensor.rows
    n_groups, padded_rows = packed_matrix(name, n_rows, n_columns, stored)[f"{name}.scales"].shape
    # Scales of later groups, in a matrix of billions of weights, come from reading the rows again.
    n_kept = min(n_groups, max(1, _KEPT_SCALES_BYTES // (2 * padded_rows)))
    kept = np.empty((n_kept, padded_rows), np.float16)
    squared_error = squared_norm = max_error = 0.0
    with tensor.open() as reader:
        for first, count in _chunks(n_rows, n_columns):
            rows, q, scales = _quantized(reader, first, count, stored, tensor.name, rounded)
            writer.write(f"{name}.q", q)
            kept[:, first : first + scales.shape[1]] = scales[:n_kept]
            squared_norm += _sum_of_squares(rows)
            difference = dequantize(q, scales, count, n_columns, stored) - rows
            squared_error += _sum_of_squares(difference)
            max_error = max(max_error, float(np.abs(difference, out=difference).max()))
            step.at((first + count) * tensor.n_bytes // n_rows)
        writer.write(f"{name}.scales", kept)
        for start in range(n_kept, n_groups, n_kept):
            again = kept[: min(n_kept, n_groups - start)]
            for first, count in _chunks(n_rows, n_columns):
                scales = _quantized(reader, first, count, stored, tensor.name, rounded)[2]
                again[:, first : first + scales.shape[1]] = scales[start : start + len(again)]
            writer.write(f"{name}.scales", again)
    return TensorError(tensor.name, (n_rows, n_columns), tensor.stored, stored, squared_error, squared_norm, max_error)


def _quantized(
    reader: RowReader, first: int, count: int, stored: MatrixFormat, name: str, rounded: Compensating | None
) -> tuple[Rows, Packed, Scales]:
    """Return some rows of a matrix: as the source has them, and packed."""
    chunk = reader.read(first, count)
    if rounded is not None and stored.kind.bits == 4:  # 8 bits leave nothing to compensate
        require_finite(chunk.values, stored.kind, name)
        return chunk.values, *rounded.quantize(chunk.values, stored)
    return chunk.values, *quantize(chunk.values, stored, name, chunk.grid)


def _chunks(n_rows: int, n_columns: int) -> list[tuple[int, int]]:
    """Return (first row, count) of chunks of whole panels."""
    rows = max(1, _CHUNK_WEIGHTS // (n_columns * ROWS_PER_PANEL)) * ROWS_PER_PANEL
    return [(first, min(rows, n_rows - first)) for first in range(0, n_rows, rows)]


def _sum_of_squares(values: NDArray[np.float32]) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def _read_vector(tensor: SourceTensor) -> NDArray[np.float32]:
    with tensor.open() as reader:
        values = reader.read(0, tensor.rows[0]).values.reshape(-1)
    if not np.isfinite(values).all():
        raise InputError(f"{tensor.name} holds NaN or infinite weights; the checkpoint is corrupt")
    return values


def _printable(text: str) -> str:
    """Return a text, which may hold the name of a file, as a pack may hold it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:1000]


def _size(path: Path) -> int:
    """Return the size of a file of the tokenizer, 0 without one.

    Raises:
        InputError: It is absurdly large.
    """
    n_bytes = path.stat().st_size if path.is_file() else 0
    if n_bytes > _MAX_TOKENIZER_BYTES:
        raise InputError(f"{path} has {format_bytes(n_bytes)}; no tokenizer is that large")
    return n_bytes


def _copy(source: Path, out: Path) -> None:
    with open_regular(source) as original, atomic_write(out) as copy:
        shutil.copyfileobj(original, copy)
