"""Everything a schedule needs to know of a model: its block programs and their backwards, for one sequence length."""

from dataclasses import dataclass, field
from functools import cached_property

from memsim.ir.autodiff import BlockBackward, differentiate
from memsim.ir.program import Program
from memsim.models.config import ModelConfig
from memsim.models.decoder import attention_program, embed_program, mlp_program
from memsim.models.head import head_program
from memsim.models.lora import LoraConfig, adapter_shapes


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a block, and its backward with respect to its input and adapters."""

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
        accumulate: The loss's gradient is divided by this many micro-batches.
        threads: Kernel threads; each needs a workspace in the one-pass head.
        frozen_below: Blocks below this one are not differentiated.
    """

    config: ModelConfig
    lora: LoraConfig
    n_tokens: int
    group_size: int
    accumulate: int = 1
    threads: int = 1
    frozen_below: int = 0
    _attention: dict[tuple[str, bool], Segment] = field(default_factory=dict, init=False, repr=False, compare=False)
    _mlp: dict[int, Segment] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def embed(self) -> Program:
        """Token ids to the first block's input."""
        return embed_program(self.config, self.n_tokens, self.group_size)

    def attention(self, index: int) -> Segment:
        """Return the first half of block ``index``.

        Blocks of a kind share it. That of the lowest block to be differentiated has no gradient of its input: nothing
        below it wants one.
        """
        kind = self.config.layer_type(index)
        key = (kind, index > self.frozen_below)
        if key not in self._attention:
            program = attention_program(self.config, self.lora, self.n_tokens, self.group_size, kind)
            self._attention[key] = self._segment(program, train_input=index > self.frozen_below)
        return self._attention[key]

    def mlp(self, n_tokens: int | None = None) -> Segment:
        """Return the second half of every block, for ``n_tokens`` of its tokens or all."""
        count = n_tokens or self.n_tokens
        if count not in self._mlp:
            program = mlp_program(self.config, self.lora, count, self.group_size)
            self._mlp[count] = self._segment(program, train_input=True)
        return self._mlp[count]

    def head(self, kind: str, train: bool) -> Program:
        """Return the loss of the last block's output (see ``schedules.choices`` for ``kind``)."""
        scale = 1.0 / self.accumulate
        one_pass = kind == "one_pass"
        return head_program(self.config, self.n_tokens, self.group_size, scale, one_pass, train, self.threads)

    def head_backward(self, kind: str) -> BlockBackward:
        """Return the gradient of the loss with respect to the head's input."""
        return differentiate(self.head(kind, train=True), "stats", ("x",), seed=False)

    @property
    def residuals(self) -> tuple[str, ...]:
        """Forward values that the backward of some kind of block reads."""
        # Besides the first, a block of each kind: the first is the only one that differs from its kind.
        kinds = {self.config.layer_type(index): index for index in range(self.config.num_hidden_layers)}
        segments = [*map(self.attention, sorted({0, *kinds.values()})), self.mlp()]
        return tuple(dict.fromkeys(name for segment in segments for name in segment.backward.residuals))

    def _segment(self, program: Program, train_input: bool) -> Segment:
        adapters = tuple(name for name in adapter_shapes(self.config, self.lora) if name in program.inputs)
        wrt = (program.inputs[0], *adapters) if train_input else adapters
        return Segment(program, differentiate(program, program.outputs[0], wrt))
