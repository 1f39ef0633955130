"""What initial values of trainable tensors are taken from: the weights of a pack."""

import numpy as np
from numpy.typing import NDArray

from memsim.execution.storage.mapped_weights import Array, MappedWeights
from memsim.ir.matrix_format import ROWS_PER_PANEL, MatrixFormat
from memsim.models.parts import matrices, vectors
from memsim.weights.pack import Pack
from memsim.weights.quantize import dequantize

Floats = NDArray[np.float32]


class StoredPart:
    """The weights of one part (see ``models.scheme.Stored``), paged in when first asked for.

    Its methods raise InputError if the file cannot be mapped, or changed since it was packed.
    """

    def __init__(self, pack: Pack, weights: MappedWeights, part: str) -> None:
        """Promise the weights of ``part``."""
        self._pack, self._config, self._weights, self._part = pack, pack.config, weights, part
        self._open = False

    def _tensor(self, name: str) -> Array:
        if not self._open:
            self._weights.page_in(self._part, everything=False)
            self._open = True
        return self._weights.array(f"{self._part}/{name}")

    def _format(self, name: str) -> MatrixFormat:
        return self._pack.formats.of(self._part, name)

    def close(self) -> None:
        """Let go of the pages that were asked for."""
        if self._open:
            self._weights.evict(self._part)

    def vector(self, name: str) -> Floats:
        """Return the stored vector ``name``."""
        return self._tensor(name)

    def rows(self, name: str, first: int, count: int, n_columns: int) -> Floats:
        """Return rows ``first`` to ``first + count`` of matrix ``name``, which has ``n_columns``, de-quantised."""
        q, scales = (self._tensor(f"{name}.{kind}") for kind in ("q", "scales"))
        start, stop = first // ROWS_PER_PANEL, -(-(first + count) // ROWS_PER_PANEL)
        columns = slice(start * ROWS_PER_PANEL, stop * ROWS_PER_PANEL)
        count_all = (stop - start) * ROWS_PER_PANEL
        rows = dequantize(q[start:stop], scales[:, columns], count_all, n_columns, self._format(name))
        return rows[first - start * ROWS_PER_PANEL :][:count]

    def matrix(self, name: str) -> Floats:
        """Return the stored matrix ``name`` [N, K], de-quantised."""
        q, scales = (self._tensor(f"{name}.{kind}") for kind in ("q", "scales"))
        return dequantize(q, scales, *matrices(self._config, self._part)[name], self._format(name))

    def has(self, name: str) -> bool:
        """Return whether the part has the vector or matrix ``name``."""
        return name in matrices(self._config, self._part) or name in vectors(self._config, self._part)

    def embeddings(self, where: NDArray[np.float64]) -> Floats:
        """Return embeddings [N, C] of the tokens at ``where`` [N], 0 to 1, in the vocabulary."""
        config = self._config
        rows = np.empty((len(where), config.hidden_size), np.float32)
        for row, token in zip(rows, (where * config.vocab_size).astype(np.int64), strict=True):
            row[:] = self.rows("embed_tokens", int(token), 1, config.hidden_size)
        rows *= np.float32(config.embedding_scale)
        return rows
