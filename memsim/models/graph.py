"""Everything a schedule needs to know of a model: its block programs and their backwards, for one sequence length."""

from dataclasses import dataclass, field
from functools import cached_property

from memsim.ir.autodiff import BlockBackward, differentiate
from memsim.ir.program import Program
from memsim.models.config import ModelConfig
from memsim.models.decoder import attention_program, embed_program, mlp_program
from memsim.models.head import head_program
from memsim.models.matrix_formats import Formats, Packing, formats_of
from memsim.models.parts import block_part, part_names
from memsim.models.scheme import Scheme

BlockKind = tuple[str, Formats]
"""The kind of a block: its attention's, and the formats of its matrices."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a block, and its backward with respect to its input and its trainable tensors."""

    forward: Program
    backward: BlockBackward

    @property
    def x(self) -> str:
        """The name of its input."""
        return self.forward.inputs[0]

    @property
    def y(self) -> str:
        """The name of its output."""
        return self.forward.outputs[0]


@dataclass(frozen=True)
class ModelGraph:
    """Block programs of one model for sequences of ``n_tokens``.

    Blocks may differ by kind (``ModelConfig.layer_type``); the programs of each kind are made once.

    Attributes:
        scheme: What is trained.
        accumulate: The loss's gradient is divided by this many micro-batches.
        packing: The formats of its matrices.
        threads: Kernel threads; each needs a workspace in the one-pass head.
        frozen_below: Blocks below this one are not differentiated.
    """

    config: ModelConfig
    scheme: Scheme
    n_tokens: int
    packing: Packing
    accumulate: int = 1
    threads: int = 1
    frozen_below: int = 0
    _attention: dict[tuple[str, bool, Formats], Segment] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _mlp: dict[tuple[int, Formats], Segment] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def n_rows(self) -> int:
        """Rows of a block's input: the sequence, after the virtual tokens that stand before it."""
        return self.scheme.rows_before + self.n_tokens

    @cached_property
    def formats(self) -> Formats:
        """The format of each matrix."""
        return formats_of(self.packing)

    @cached_property
    def trained(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The parts in which something is trained, in forward order, with their tensors (name -> shape)."""
        shapes = {part: self.scheme.shapes(self.config, part) for part in part_names(self.config)}
        return {part: tensors for part, tensors in shapes.items() if tensors}

    def trains_below(self, part: str) -> bool:
        """Return whether the input of ``part`` needs a gradient: something that comes before it is trained."""
        parts = part_names(self.config)
        return any(other in self.trained for other in parts[: parts.index(part)])

    def goes_back(self, part: str) -> bool:
        """Return whether ``part`` has a backward at all."""
        return part in self.trained or self.trains_below(part)

    @cached_property
    def embed(self) -> Program:
        """Token ids to the first block's input."""
        return embed_program(self.config, self.scheme, self.n_tokens, self.formats)

    def embed_backward(self) -> BlockBackward:
        """Return the gradients of what is trained in the embedding."""
        return differentiate(self.embed, "y", tuple(self.trained["embed"]))

    def attention(self, index: int) -> Segment:
        """Return the first half of block ``index``.

        Blocks of a kind share it. That of the first block may have no gradient of its input, as with LoRA: nothing
        below it is trained. Nor has that of the lowest block to be differentiated.
        """
        kind, formats = self.kind(index)
        train_input = index > self.frozen_below or (not self.frozen_below and self.trains_below(block_part(index)))
        key = (kind, train_input, formats)
        if key not in self._attention:
            program = attention_program(self.config, self.scheme, self.n_rows, formats, kind)
            self._attention[key] = self._segment(program, train_input)
        return self._attention[key]

    def mlp(self, n_tokens: int | None = None, index: int = 0) -> Segment:
        """Return the second half of block ``index``, for ``n_tokens`` of its rows or all.

        Blocks whose matrices have the same formats share it.
        """
        key = (n_tokens or self.n_rows, self.formats.of_block(block_part(index)))
        if key not in self._mlp:
            program = mlp_program(self.config, self.scheme, *key)
            self._mlp[key] = self._segment(program, train_input=True)
        return self._mlp[key]

    def head(self, kind: str, train: bool) -> Program:
        """Return the loss of the last block's output (see ``schedules.choices`` for ``kind``)."""
        scale = 1.0 / self.accumulate
        one_pass = kind == "one_pass"
        settings = (self.config, self.scheme, self.n_tokens, self.formats)
        return head_program(*settings, scale, one_pass, train, self.threads)

    def head_backward(self, kind: str) -> BlockBackward:
        """Return the gradient of the loss with respect to the head's input and what is trained in it."""
        wrt = ("x",) if self.trains_below("head") else ()
        return differentiate(self.head(kind, train=True), "stats", (*wrt, *self.trained.get("head", ())), seed=False)

    def kind(self, index: int) -> BlockKind:
        """Return what decides the programs of block ``index``, its place aside."""
        return self.config.layer_type(index), self.formats.of_block(block_part(index))

    @property
    def residuals(self) -> tuple[str, ...]:
        """Forward values that the backward of some kind of block reads."""
        # Besides the first, a block of each kind: the first is the only one that differs from its kind.
        kinds = {self.config.layer_type(index): index for index in range(self.config.num_hidden_layers)}
        blocks = [index for index in sorted({0, *kinds.values()}) if self.goes_back(block_part(index))]
        segments = [*map(self.attention, blocks), self.mlp()] if blocks else []
        return tuple(dict.fromkeys(name for segment in segments for name in segment.backward.residuals))

    def _segment(self, program: Program, train_input: bool) -> Segment:
        trained = tuple(name for name in self.trained.get(block_part(0), ()) if name in program.inputs)
        wrt = (program.inputs[0], *trained) if train_input else trained
        return Segment(program, differentiate(program, program.outputs[0], wrt))
