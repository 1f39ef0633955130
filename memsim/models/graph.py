"""Everything a schedule needs to know of a model: its block programs and their backwards, for one sequence length."""

from dataclasses import dataclass
from functools import cached_property

from memsim.ir.autodiff import BlockBackward, differentiate
from memsim.ir.program import Program
from memsim.models.config import ModelConfig
from memsim.models.decoder import attention_program, embed_program, head_program, mlp_program
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

    Attributes:
        accumulate: The loss's gradient is divided by this many micro-batches.
        threads: Kernel threads; each needs a workspace in the one-pass head.
    """

    config: ModelConfig
    lora: LoraConfig
    n_tokens: int
    group_size: int
    accumulate: int = 1
    threads: int = 1

    @cached_property
    def embed(self) -> Program:
        """Token ids to the first block's input."""
        return embed_program(self.config, self.n_tokens, self.group_size)

    @cached_property
    def attention(self) -> Segment:
        """The first half of a block."""
        return self._attention(train_input=True)

    @cached_property
    def first_attention(self) -> Segment:
        """The same without the gradient of its input: nothing below the first block is trained."""
        return self._attention(train_input=False)

    @cached_property
    def mlp(self) -> Segment:
        """The second half of a block, for all tokens at once."""
        return self.mlp_tile(self.n_tokens)

    def mlp_tile(self, n_tokens: int) -> Segment:
        """Return the second half of a block for ``n_tokens`` of its tokens."""
        return self._segment(mlp_program(self.config, self.lora, n_tokens, self.group_size), train_input=True)

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
        """Forward values of a block that its backward reads."""
        return tuple(dict.fromkeys((*self.attention.backward.residuals, *self.mlp.backward.residuals)))

    def _attention(self, train_input: bool) -> Segment:
        program = attention_program(self.config, self.lora, self.n_tokens, self.group_size)
        return self._segment(program, train_input)

    def _segment(self, program: Program, train_input: bool) -> Segment:
        adapters = tuple(name for name in adapter_shapes(self.config, self.lora) if name in program.inputs)
        wrt = (program.inputs[0], *adapters) if train_input else adapters
        return Segment(program, differentiate(program, program.outputs[0], wrt))
