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
from memsim.models.config import ModelConfig
from memsim.models.parts import ROWS_PER_PANEL, matrices, packed_matrix, part_names, vectors
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
_LOW_BITS = np.uint64(0x1111_1111_1111_1111)
_ALL_BUT_SIGN = np.uint64(0x7777_7777_7777_7777)


def write_synthetic(out: Path, config: ModelConfig, group_size: int, seed: int, progress: BytesProgress) -> Pack:
    """Write a synthetic pack to ``out``, which must not exist; the same arguments give the same bytes.

    Args:
        out: The pack's directory; call this while holding ``staging.locked(out)``.
        config: Dimensions.
        group_size: Columns that share a scale.
        seed: Of the generator.
        progress: Called with (label, bytes done, bytes in all).

    Raises:
        InputError: Not enough free space (checked first), or the directory cannot be written.
    """
    total = pack_bytes(config, group_size)
    done = 0
    with staged_directory(out) as staging:
        require_free(staging, total, "the synthetic pack")
        pack = PackWriter(staging, config, group_size)
        for index, part in enumerate(part_names(config)):
            # One stream per part, so that parts do not depend on each other.
            source = np.random.PCG64(np.random.SeedSequence([seed, index]))
            with pack.part(part) as writer:
                for name, (n_rows, n_columns) in matrices(config, part).items():
                    _write_matrix(writer, source, name, n_rows, n_columns, group_size)
                    progress(f"synthetic {part}", done + writer.n_bytes, total)
                for name, shape in vectors(config, part).items():
                    writer.write(name, _vector(source, name, prod(shape)))
            done += writer.n_bytes
        pack.finish("synthetic", seed=seed)
    progress("synthetic weights written", total, total)
    return open_pack(out)


def _write_matrix(
    writer: TensorFileWriter, source: np.random.PCG64, name: str, n_rows: int, n_columns: int, group_size: int
) -> None:
    specs = packed_matrix(name, n_rows, n_columns, group_size)
    n_panels, n_dwords, _ = specs[f"{name}.q"].shape
    mask = _column_mask(n_dwords, n_columns)
    panels_per_chunk = max(1, _CHUNK_BYTES // (n_dwords * ROWS_PER_PANEL * 4))
    for first in range(0, n_panels, panels_per_chunk):
        count = min(panels_per_chunk, n_panels - first)
        q = _nibbles(source, count * n_dwords * ROWS_PER_PANEL // 2).reshape(count, n_dwords, ROWS_PER_PANEL)
        if n_columns % group_size:
            q &= mask[:, None]
        if first + count == n_panels and n_rows % ROWS_PER_PANEL:
            q[-1, :, n_rows % ROWS_PER_PANEL :] = 0
        writer.write(f"{name}.q", q)
    std = _EMBEDDING_STD if name == "embed_tokens" else 1 / sqrt(n_columns)
    n_groups, padded_rows = specs[f"{name}.scales"].shape
    groups_per_chunk = max(1, _CHUNK_BYTES // (padded_rows * 8))
    for first in range(0, n_groups, groups_per_chunk):
        count = min(groups_per_chunk, n_groups - first)
        # Scales that differ between groups, so that one read from the wrong place shows.
        spread = 1 + _uniform(source, count * padded_rows).reshape(count, padded_rows) / 4
        scales = (spread * (std / _NIBBLE_STD)).astype(np.float16)
        scales[:, n_rows:] = 0
        writer.write(f"{name}.scales", scales)


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


def _column_mask(n_dwords: int, n_columns: int) -> NDArray[np.uint32]:
    """Return per dword a mask of the nibbles whose column is below ``n_columns``."""
    columns_left = np.clip(n_columns - 8 * np.arange(n_dwords), 0, 8)
    return ((np.uint64(1) << (4 * columns_left).astype(np.uint64)) - np.uint64(1)).astype("<u4")


def _uniform(source: np.random.PCG64, count: int) -> NDArray[np.float32]:
    """Return ``count`` values in [-1, 1)."""
    return (source.random_raw(count) >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)


def _vector(source: np.random.PCG64, name: str, length: int) -> NDArray[Any]:
    """Return a norm weight near 1, a small bias, or small positions."""
    center, spread = (1.0, 0.1) if name.endswith("norm.weight") else (0.0, 0.02)
    return (center + spread * _uniform(source, length)).astype("<f4")
