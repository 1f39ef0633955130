"""What initial values of trainable tensors are taken from: the weights of a pack."""

import numpy as np
from numpy.typing import NDArray

from memsim.models.parts import ROWS_PER_PANEL, matrices, vectors
from memsim.runtime.paging import Array, MappedWeights
from memsim.weights.pack import Pack
from memsim.weights.quantize import dequantize

Floats = NDArray[np.float32]


class StoredPart:
    """The weights of one part (see ``models.scheme.Stored``), paged in when first asked for.

    Its methods raise InputError if the file cannot be mapped, or changed since it was packed.
    """

    def __init__(self, pack: Pack, weights: MappedWeights, part: str) -> None:
        """Promise the weights of ``part``."""
        self._config, self._weights, self._part = pack.config, weights, part
        self._open = False

    def _tensor(self, name: str) -> Array:
        if not self._open:
            self._weights.page_in(self._part, everything=False)
            self._open = True
        return self._weights.array(f"{self._part}/{name}")

    def close(self) -> None:
        """Let go of the pages that were asked for."""
        if self._open:
            self._weights.evict(self._part)

    def vector(self, name: str) -> Floats:
        """Return the stored vector ``name``."""
        return self._tensor(name)

    def matrix(self, name: str) -> Floats:
        """Return the stored matrix ``name`` [N, K], de-quantised."""
        q, scales = (self._tensor(f"{name}.{kind}") for kind in ("q", "scales"))
        return dequantize(q, scales, *matrices(self._config, self._part)[name])

    def has(self, name: str) -> bool:
        """Return whether the part has the vector or matrix ``name``."""
        return name in matrices(self._config, self._part) or name in vectors(self._config, self._part)

    def embeddings(self, where: NDArray[np.float64]) -> Floats:
        """Return embeddings [N, C] of the tokens at ``where`` [N], 0 to 1, in the vocabulary."""
        q, scales = (self._tensor(f"embed_tokens.{kind}") for kind in ("q", "scales"))
        config = self._config
        rows = np.empty((len(where), config.hidden_size), np.float32)
        for row, token in zip(rows, (where * config.vocab_size).astype(np.int64), strict=True):
            panel, line = divmod(int(token), ROWS_PER_PANEL)
            columns = slice(panel * ROWS_PER_PANEL, (panel + 1) * ROWS_PER_PANEL)
            row[:] = dequantize(q[panel : panel + 1], scales[:, columns], ROWS_PER_PANEL, config.hidden_size)[line]
        rows *= np.float32(config.embedding_scale)
        return rows
