"""Matrices that are trained as a whole: where their first values come from, and what they are in the end."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.execution.storage.initial_values import StoredPart
from memsim.execution.storage.mapped_weights import Array, MappedWeights
from memsim.execution.storage.scratch import ScratchFile
from memsim.models.tiles import TiledMatrix
from memsim.weights.pack import Pack
from memsim.weights.readers.source import Checkpoint

Floats = NDArray[np.float32]


class TrainedMatrices:
    """The matrices of one session, in tiles on its scratch file: a private copy, gone with the process.

    Args:
        matrices: All that is trained, by (part, name); empty for a scheme that trains none.
        scratch: Holds their tiles.
    """

    def __init__(self, matrices: Mapping[tuple[str, str], TiledMatrix], scratch: ScratchFile) -> None:
        self._matrices, self._scratch = matrices, scratch

    def tiles(self) -> Iterator[tuple[str, str, Array]]:
        """Yield (part, name, bits uint16 [rows, K]) of every tile, top to bottom.

        What is written to a tile before the next is asked for stays.
        """
        for matrix in self._matrices.values():
            for tile in matrix.tiles():
                yield matrix.part, matrix.name, self._scratch.array(tile.source, "bf16", (tile.count, matrix.n_columns))
                self._scratch.write_back(tile.source)

    def fill(self, pack: Pack, weights: MappedWeights, checkpoint: Checkpoint | None) -> None:
        """Write the first values: those of ``checkpoint``, or of the INT4 weights of ``pack``, rounded to bf16.

        A unit of noise is in memory at a time, so this needs none that is not planned.

        Raises:
            InputError: A file cannot be read, has changed, or is of another model.
        """
        for matrix in self._matrices.values():
            with ExitStack() as stack:
                rows = _reader(matrix, pack, weights, checkpoint, stack)
                for tile in matrix.tiles():
                    bits = self._scratch.array(tile.source, "bf16", (tile.count, matrix.n_columns))
                    for start in range(0, tile.count, matrix.unit_rows):
                        count = min(matrix.unit_rows, tile.count - start)
                        bits[start : start + count] = to_bf16(rows(tile.start + start, count))
                    self._scratch.write_back(tile.source)


def _reader(
    matrix: TiledMatrix, pack: Pack, weights: MappedWeights, checkpoint: Checkpoint | None, stack: ExitStack
) -> Callable[[int, int], Floats]:
    """Return what reads (first row, count) of a matrix; ``stack`` closes it."""
    if checkpoint is None:
        stored = StoredPart(pack, weights, matrix.part)
        stack.callback(stored.close)
        return lambda first, count: stored.rows(matrix.name, first, count, matrix.n_columns)
    tensor = checkpoint.tensors.get((matrix.part, f"{matrix.name}.weight"))
    if tensor is None or tensor.rows != (matrix.n_rows, matrix.n_columns):
        raise InputError(f"{checkpoint.directory} is not what {pack.directory} was packed from; pack it again")
    reader = stack.enter_context(tensor.open())
    return lambda first, count: reader.read(first, count).values


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """Return the bits of ``values`` rounded to bf16, to nearest even; a value of bf16 stays as it is."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
