"""A model's forward outside of a step program: block by block, for calibrating a pack and for the loss of one.

It runs the block programs of every step through the op table of every run. Where the weights are packed, those are the
nodes as they are; where they are a checkpoint's floats, a product reads its matrix dense. One part of the weights is in
memory at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memsim.errors import UsageError
from memsim.execution.kernel_call import Kernel
from memsim.ir.program import Node, Program
from memsim.models.config import ModelConfig
from memsim.models.decoder import attention_program, embed_program, mlp_program
from memsim.models.head import head_program
from memsim.models.matrix_formats import Formats
from memsim.models.parts import block_part, head_matrix
from memsim.models.rope_tables import constant_values
from memsim.models.schemes import Norms
from memsim.weights.readers.source import Checkpoint
from memsim.weights.tensor_file import map_file, read_header, view

Array = NDArray[Any]
Floats = NDArray[np.float32]
Seen = Callable[[str, str, Floats], None]
"""Told (matrix name, name of its input, the input [T, K]) of each product."""

_DTYPES = {"f32": np.float32, "u32": np.uint32, "f64": np.float64}
_HEAD_ROWS = 4096  # of a dense head, in memory at once


class PartWeights(Protocol):
    """The weights of one part."""

    def array(self, name: str) -> Array:
        """Return a stored tensor."""

    def dense(self, name: str) -> Floats | None:
        """Return matrix ``name`` [N, K] if it is dense."""

    def rows(self, name: str, ids: Sequence[int]) -> Floats | None:
        """Return rows of matrix ``name`` if it is dense."""


class PackedPart:
    """A part's file in a pack, mapped."""

    def __init__(self, path: Path) -> None:
        """Map ``path``.

        Raises:
            InputError: It cannot be read.
        """
        mapped = map_file(path)
        self._tensors = {name: view(mapped, entry) for name, entry in read_header(path).items() if entry.dtype != "u8"}

    def array(self, name: str) -> Array:
        """Return a stored tensor."""
        return self._tensors[name]

    def dense(self, name: str) -> None:
        """It has none."""

    def rows(self, name: str, ids: Sequence[int]) -> None:
        """It has none."""


class CheckpointPart:
    """A part of a checkpoint; matrices stay in memory once read."""

    def __init__(self, checkpoint: Checkpoint, part: str) -> None:
        """Read nothing yet."""
        self._checkpoint, self._part = checkpoint, part
        self._read: dict[str, Floats] = {}

    def array(self, name: str) -> Floats:
        """Return vector ``name``, or a small matrix of vectors as the part has it."""
        tensor = self._checkpoint.tensors[self._part, name]
        with tensor.open() as reader:
            values = reader.read(0, tensor.rows[0]).values
        return np.ascontiguousarray(values if len(values) > 1 else values[0])

    def dense(self, name: str) -> Floats:
        """Return matrix ``name`` [N, K]."""
        if name not in self._read:
            self._read[name] = np.ascontiguousarray(self.array(f"{name}.weight"))
        return self._read[name]

    def rows(self, name: str, ids: Sequence[int]) -> Floats:
        """Return rows of matrix ``name``."""
        with self._checkpoint.tensors[self._part, f"{name}.weight"].open() as reader:
            known = {row: reader.read(row, 1).values[0] for row in sorted(set(ids))}
        return np.stack([known[row] for row in ids])

    def tiles(self, name: str) -> Iterator[tuple[int, Floats]]:
        """Yield (first row, rows) of matrix ``name``, top to bottom."""
        tensor = self._checkpoint.tensors[self._part, f"{name}.weight"]
        with tensor.open() as reader:
            for first in range(0, tensor.rows[0], _HEAD_ROWS):
                yield first, reader.read(first, min(_HEAD_ROWS, tensor.rows[0] - first)).values


@dataclass(frozen=True)
class WholeForward:
    """Forwards of one model over sequences of ``n_tokens``.

    Attributes:
        formats: Of the matrices where they are packed.
        kernels: The op table.
        threads: Kernel threads.
    """

    config: ModelConfig
    formats: Formats
    n_tokens: int
    kernels: Mapping[str, Kernel]
    threads: int
    _constants: dict[str, Array] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.config.family.causal or self.config.num_labels is not None:
            raise UsageError(f"only causal language models can be calibrated or measured, not {self.config.model_type}")
        object.__setattr__(self, "_constants", constant_values(self.config, self.n_tokens))

    def embed(self, ids: Array, weights: PartWeights) -> Floats:
        """Return the first block's input [T, C] from ids uint32 [T]."""
        program = embed_program(self.config, Norms(), self.n_tokens, self.formats)
        return self._run(program, program.nodes, {"ids": ids}, weights)["y"]

    def block(self, index: int, x: Floats, weights: PartWeights, seen: Seen | None = None) -> Floats:
        """Return the output [T, C] of block ``index``."""
        formats = self.formats.of_block(block_part(index))
        kind = self.config.layer_type(index)
        attention = attention_program(self.config, Norms(), self.n_tokens, formats, kind)
        middle = self._run(attention, attention.nodes, {"x": x}, weights, seen)["x_mid"]
        mlp = mlp_program(self.config, Norms(), self.n_tokens, formats)
        return self._run(mlp, mlp.nodes, {"x_mid": middle}, weights, seen)["y"]

    def losses(self, x: Floats, labels: Array, norm: PartWeights, matrix: PartWeights) -> tuple[float, int]:
        """Return the sum of the losses of the last block's output [T, C], and how many labels count.

        Args:
            x: The output.
            labels: uint32 [T].
            norm: The weights of the part ``head``.
            matrix: Those of the part that holds the head's matrix, which may be the same.
        """
        program = head_program(self.config, Norms(), self.n_tokens, self.formats, 1.0, True, False, self.threads)
        both = _Both(norm, matrix, head_matrix(self.config)[1])
        if not isinstance(matrix, CheckpointPart):
            stats = self._run(program, program.nodes, {"x": x, "labels": labels}, both)["stats"]
            return float(stats[0]), int(stats[2])
        env = self._run(program, program.nodes[:-1], {"x": x, "labels": labels}, both)
        return _dense_loss(env[program.nodes[-1].inputs[0]], labels, matrix, head_matrix(self.config)[1])

    def _run(
        self, program: Program, nodes: Sequence[Node], env: dict[str, Array], weights: PartWeights,
        seen: Seen | None = None,
    ) -> dict[str, Array]:  # fmt: skip
        def value(name: str) -> Array:
            if name not in env:
                env[name] = self._constants[name] if name in self._constants else weights.array(name)
            return env[name]

        for node in nodes:
            types = [program.values[name].type for name in node.outputs]
            outputs = [np.empty(kind.shape, _DTYPES[kind.dtype]) for kind in types]
            env.update(zip(node.outputs, outputs, strict=True))
            if node.op == "embedding_q4":
                dense = weights.rows(node.inputs[1].removesuffix(".q"), env["ids"].tolist())
                if dense is not None:
                    np.multiply(dense, np.float32(node.attrs["scale"]), out=outputs[0])
                    continue
            if node.op == "linear_q4":
                name = node.inputs[1].removesuffix(".q")
                if seen is not None:
                    seen(name, node.inputs[0], value(node.inputs[0]))
                if (w := weights.dense(name)) is not None:
                    inputs = [value(node.inputs[0]), w, *map(value, node.inputs[3:])]
                    self.kernels["linear"](outputs, inputs, node.attrs)
                    continue
            self.kernels[node.op](outputs, [value(name) for name in node.inputs], node.attrs)
        return env


@dataclass(frozen=True, slots=True)
class _Both:
    """The head's vectors from one part, and its matrix from another."""

    norm: PartWeights
    matrix: PartWeights
    name: str

    def array(self, name: str) -> Array:
        return (self.matrix if name.startswith(f"{self.name}.") else self.norm).array(name)

    def dense(self, name: str) -> Floats | None:
        return self.norm.dense(name)

    def rows(self, name: str, ids: Sequence[int]) -> Floats | None:
        return self.matrix.rows(name, ids)


def _dense_loss(x: Floats, labels: Array, matrix: CheckpointPart, name: str) -> tuple[float, int]:
    """Return the sum of cross-entropies of logits x W^T, and their number, a tile of the vocabulary at a time."""
    largest = np.full(len(x), -np.inf)
    total, own = np.zeros(len(x)), np.zeros(len(x))
    for first, rows in matrix.tiles(name):
        logits = (x @ rows.T).astype(np.float64)
        highest = np.maximum(largest, logits.max(axis=1))
        total = total * np.exp(largest - highest) + np.exp(logits - highest[:, None]).sum(axis=1)
        largest = highest
        inside = (labels >= first) & (labels < first + len(rows))
        own[inside] = logits[inside, labels[inside].astype(np.int64) - first]
    return float((largest + np.log(total) - own).sum()), len(x)
