"""Seeded synthetic weights with exactly the shapes and bytes of real ones, drawn directly as INT4.

Memory and time of a run on them are real; its loss is not. Matrices have a standard deviation of 1 / sqrt(K), so
that a normalised activation stays near 1; the embedding, which may also be the head, has 0.02, the value that such
models are initialised with, so that logits stay near 0.02 sqrt(C).
"""

from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.files import require_free
from memsim.ir.matrix_format import ROWS_PER_PANEL, FormatKind, MatrixFormat
from memsim.models.config import ModelConfig
from memsim.models.matrix_formats import Packing, formats_of
from memsim.models.parts import matrices, packed_matrix, part_names, vectors
from memsim.progress_types import BytesProgress
from memsim.staged_directory import staged_directory
from memsim.weights.pack import Pack, open_pack
from memsim.weights.pack_writer import PackWriter, pack_bytes
from memsim.weights.tensor_file import TensorFileWriter

GENERATOR_VERSION = 1  # part of cache names: raise it when the same seed gives other weights

_CHUNK_BYTES = 4 << 20
_EMBEDDING_STD = 0.02
# A nibble is uniform over -7 ... 7, except that 0 has twice the chance of the others: variance 2 (1 + ... + 49) / 16.
_NIBBLE_STD = sqrt(2 * sum(q * q for q in range(8)) / 16)
_LEVEL_STD = {"symmetric": _NIBBLE_STD, "affine": _NIBBLE_STD, "symmetric8": 2**8 / sqrt(12)}
_LOW_BITS = np.uint64(0x1111_1111_1111_1111)
_ALL_BUT_SIGN = np.uint64(0x7777_7777_7777_7777)


def write_synthetic(out: Path, config: ModelConfig, packing: Packing, seed: int, progress: BytesProgress) -> Pack:
    """Write a synthetic pack to ``out``, which must not exist; the same arguments give the same bytes.

    Args:
        out: The pack's directory; call this while holding ``staging.locked(out)``.
        config: Dimensions.
        packing: The formats of its matrices.
        seed: Of the generator.
        progress: Called with (label, bytes done, bytes in all).

    Raises:
        InputError: Not enough free space (checked first), or the directory cannot be written.
    """
    total = pack_bytes(config, packing)
    formats = formats_of(packing)
    done = 0
    with staged_directory(out) as staging:
        require_free(staging, total, "the synthetic pack")
        pack = PackWriter(staging, config, formats)
        for index, part in enumerate(part_names(config)):
            # One stream per part, so that parts do not depend on each other.
            source = np.random.PCG64(np.random.SeedSequence([seed, index]))
            with pack.part(part) as writer:
                for name, (n_rows, n_columns) in matrices(config, part).items():
                    _write_matrix(writer, source, name, n_rows, n_columns, formats.of(part, name))
                    progress(f"synthetic {part}", done + writer.n_bytes, total)
                for name, shape in vectors(config, part).items():
                    writer.write(name, _vector(source, name, prod(shape)))
            done += writer.n_bytes
        pack.finish("synthetic", seed=seed)
    progress("synthetic weights written", total, total)
    return open_pack(out)


def _write_matrix(
    writer: TensorFileWriter, source: np.random.PCG64, name: str, n_rows: int, n_columns: int, stored: MatrixFormat
) -> None:
    specs = packed_matrix(name, n_rows, n_columns, stored)
    n_panels, n_dwords, _ = specs[f"{name}.q"].shape
    mask = _column_mask(n_dwords, n_columns, stored.kind.bits)
    panels_per_chunk = max(1, _CHUNK_BYTES // (n_dwords * ROWS_PER_PANEL * 4))
    for first in range(0, n_panels, panels_per_chunk):
        count = min(panels_per_chunk, n_panels - first)
        q = _levels(source, count * n_dwords * ROWS_PER_PANEL // 2, stored.kind)
        q = q.reshape(count, n_dwords, ROWS_PER_PANEL)
        if n_columns % stored.group_size:
            q &= mask[:, None]
        if first + count == n_panels and n_rows % ROWS_PER_PANEL:
            q[-1, :, n_rows % ROWS_PER_PANEL :] = 0
        writer.write(f"{name}.q", q)
    std = _EMBEDDING_STD if name == "embed_tokens" else 1 / sqrt(n_columns)
    _write_scales(writer, source, name, n_rows, specs[f"{name}.scales"].shape, std, stored.kind)


def _write_scales(
    writer: TensorFileWriter, source: np.random.PCG64, name: str, n_rows: int, shape: tuple[int, ...], std: float,
    kind: FormatKind,
) -> None:  # fmt: skip
    rows_a_group, padded_rows = kind.rows_a_group, shape[1]
    n_groups = shape[0] // rows_a_group
    groups_per_chunk = max(1, _CHUNK_BYTES // (padded_rows * 8))
    for first in range(0, n_groups, groups_per_chunk):
        count = min(groups_per_chunk, n_groups - first)
        # Scales that differ between groups, so that one read from the wrong place shows.
        spread = 1 + _uniform(source, count * padded_rows).reshape(count, padded_rows) / 4
        scales = (spread * (std / _LEVEL_STD[kind.name])).astype(np.float16)
        scales[:, n_rows:] = 0
        if kind.affine:  # their levels are counted from 8, the middle
            scales = np.stack([scales, scales * np.float16(-8)], axis=1).reshape(-1, padded_rows)
        writer.write(f"{name}.scales", scales)


def _levels(source: np.random.PCG64, n_words: int, kind: FormatKind) -> NDArray[np.uint32]:
    """Return the levels in 2 ``n_words`` random dwords."""
    if kind.bits == 8:
        return source.random_raw(n_words).view("<u4")
    q = _nibbles(source, n_words)
    if kind.affine:
        q ^= np.uint32(0x8888_8888)  # two's complement to counted from 8
    return q


def _nibbles(source: np.random.PCG64, n_words: int) -> NDArray[np.uint32]:
    """Return 16 ``n_words`` random nibbles, -8 mapped to 0 so that weights are symmetric, as dwords."""
    bits = source.random_raw(n_words)
    low = bits | bits >> np.uint64(1)
    low |= bits >> np.uint64(2)
    low &= _LOW_BITS  # per nibble: 1 unless its low three bits are all zero, as those of -8 (and 0) are
    low <<= np.uint64(3)
    low |= _ALL_BUT_SIGN
    bits &= low
    return bits.view("<u4")


def _column_mask(n_dwords: int, n_columns: int, bits: int) -> NDArray[np.uint32]:
    """Return per dword a mask of the levels whose column is below ``n_columns``."""
    of_dword = 32 // bits
    columns_left = np.clip(n_columns - of_dword * np.arange(n_dwords), 0, of_dword)
    return ((np.uint64(1) << (bits * columns_left).astype(np.uint64)) - np.uint64(1)).astype("<u4")


def _uniform(source: np.random.PCG64, count: int) -> NDArray[np.float32]:
    """Return ``count`` values in [-1, 1)."""
    return (source.random_raw(count) >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)


def _vector(source: np.random.PCG64, name: str, length: int) -> NDArray[Any]:
    """Return a norm weight near 1, a small bias, or small positions."""
    center, spread = (1.0, 0.1) if name.endswith("norm.weight") else (0.0, 0.02)
    return (center + spread * _uniform(source, length)).astype("<f4")
