"""Everything a schedule needs to know of a model: its block programs and their backwards, for one sequence length."""

from dataclasses import dataclass

from memsim.ir.autodiff import BlockBackward, differentiate
from memsim.ir.program import Program
from memsim.models.config import ModelConfig
from memsim.models.decoder import block_program, embed_program, head_program
from memsim.models.lora import LoraConfig, adapter_shapes


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """Block programs of one model.

    Attributes:
        backward: Gradients of a block with respect to its input and adapters.
        first_backward: The same without the input's: nothing below the first block is trained.
        head_backward: The gradient of the loss with respect to the head's input.
    """

    config: ModelConfig
    lora: LoraConfig
    n_tokens: int
    group_size: int
    embed: Program
    block: Program
    head: Program
    backward: BlockBackward
    first_backward: BlockBackward
    head_backward: BlockBackward

    @property
    def residuals(self) -> tuple[str, ...]:
        """Forward values of a block that its backward reads."""
        return self.backward.residuals


def build_graph(
    config: ModelConfig, lora: LoraConfig, n_tokens: int, group_size: int, accumulate: int = 1
) -> ModelGraph:
    """Build the block programs; the loss's gradient is divided by ``accumulate`` micro-batches."""
    block = block_program(config, lora, n_tokens, group_size)
    head = head_program(config, n_tokens, group_size, scale=1.0 / accumulate)
    adapters = tuple(adapter_shapes(config, lora))
    return ModelGraph(
        config=config,
        lora=lora,
        n_tokens=n_tokens,
        group_size=group_size,
        embed=embed_program(config, n_tokens, group_size),
        block=block,
        head=head,
        backward=differentiate(block, "y", ("x", *adapters)),
        first_backward=differentiate(block, "y", adapters),
        head_backward=differentiate(head, "stats", ("x",), seed=False),
    )
