"""Packing with a text: rounding that compensates its errors on it, and the loss of what comes out.

Block by block, a checkpoint's matrices are multiplied with what they meet in the text, behind blocks that are packed
already; those products decide how each matrix is rounded. In memory are the text's activations between two blocks, one
block's matrices, and the moments of its inputs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.execution.kernels import KERNELS
from memsim.models.matrix_formats import Formats
from memsim.models.parts import block_part, head_matrix, matrices
from memsim.quality.sample_text import Windows
from memsim.quality.whole_forward import CheckpointPart, PackedPart, PartWeights, WholeForward
from memsim.weights.compensation import Compensating, InputMoments
from memsim.weights.pack import Pack
from memsim.weights.readers.source import Checkpoint

Progress = Callable[[str], None]


class TextCalibration:
    """A ``packing.Rounding`` by what the matrices of each block meet in a text."""

    def __init__(self, checkpoint: Checkpoint, formats: Formats, windows: Windows, threads: int) -> None:
        """Prepare; nothing is read yet.

        Raises:
            UsageError: The model is not a causal language model.
        """
        self._checkpoint, self._windows = checkpoint, windows
        self._forward = WholeForward(checkpoint.config, formats, len(windows[0][0]), KERNELS, threads)
        self._x: list[NDArray[np.float32]] = []
        self._chosen: dict[str, Compensating] = {}

    def begin(self, part: str) -> None:
        """Run a block of the checkpoint, and choose how its matrices will be rounded."""
        self._chosen = {}
        if not part.startswith("block_"):
            return
        config, moments, inputs = self._checkpoint.config, dict[str, InputMoments](), dict[str, str]()
        shapes, index = matrices(config, part), _index(part)

        def seen(name: str, source: str, x: NDArray[np.float32]) -> None:
            if inputs.setdefault(source, name) == name:  # matrices of one input share its moments
                moments.setdefault(source, InputMoments(shapes[name][1])).add(x)
            named[name] = source

        named: dict[str, str] = {}
        weights = CheckpointPart(self._checkpoint, part)
        for x in self._x:
            self._forward.block(index, x, weights, seen)
        del weights
        found = {source: Compensating(own.stretches, own.factors()) for source, own in moments.items()}
        self._chosen = {name: found[source] for name, source in named.items()}

    def rounding(self, name: str) -> Compensating | None:
        """Return how matrix ``name`` of the part is rounded; None for each weight by itself."""
        return self._chosen.get(name)

    def end(self, part: str, path: Path) -> None:
        """Take the text through the part as it is packed in ``path``."""
        self._chosen = {}
        if part == "embed":
            weights = PackedPart(path)
            self._x = [self._forward.embed(ids, weights) for ids, _ in self._windows]
        elif part.startswith("block_"):
            weights = PackedPart(path)
            for number, x in enumerate(self._x):
                self._x[number] = self._forward.block(_index(part), x, weights)


def loss_of_pack(pack: Pack, windows: Windows, threads: int) -> float:
    """Return the mean loss of a pack on windows of a text, in float32."""
    forward = WholeForward(pack.config, pack.formats, len(windows[0][0]), KERNELS, threads)
    return _loss(forward, windows, lambda part: PackedPart(pack.part(part).path))


def loss_of_checkpoint(checkpoint: Checkpoint, formats: Formats, windows: Windows, threads: int) -> float:
    """Return the mean loss of a checkpoint as its files have it, a block in memory at a time."""
    forward = WholeForward(checkpoint.config, formats, len(windows[0][0]), KERNELS, threads)
    return _loss(forward, windows, lambda part: CheckpointPart(checkpoint, part))


def _loss(forward: WholeForward, windows: Windows, weights_of: Callable[[str], PartWeights]) -> float:
    embed = weights_of("embed")
    activations = [forward.embed(ids, embed) for ids, _ in windows]
    for index in range(forward.config.num_hidden_layers):
        weights = weights_of(block_part(index))
        for number, x in enumerate(activations):
            activations[number] = forward.block(index, x, weights)
    norm, matrix = weights_of("head"), weights_of(head_matrix(forward.config)[0])
    sums = [forward.losses(x, labels, norm, matrix) for x, (_, labels) in zip(activations, windows, strict=True)]
    return sum(loss for loss, _ in sums) / sum(count for _, count in sums)


def _index(part: str) -> int:
    return int(part.removeprefix("block_"))
