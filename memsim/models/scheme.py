"""What of a model is trained: the one description that block programs, lowering, sessions and exporters read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from memsim.errors import UsageError
from memsim.models.config import ModelConfig

Floats = NDArray[np.float32]


class Stored(Protocol):
    """What initial values may be taken from: the weights of one part."""

    def vector(self, name: str) -> Floats:
        """Return the stored vector ``name`` of this part."""

    def embeddings(self, where: NDArray[np.float64]) -> Floats:
        """Return N embeddings [N, C] as a sequence gets them: ``where`` [N] are places in the vocabulary, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Scheme(ABC):
    """One way of fine-tuning. Its trainable tensors are float32, and inputs of the block programs by their names.

    A tensor that has the name of a stored one takes its place. What the other names mean is said in ``decoder``.

    Attributes:
        name: What ``--scheme`` calls it.
    """

    name: ClassVar[str]

    @abstractmethod
    def shapes(self, config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
        """Return the trainable tensors of ``part`` as name -> shape, in forward order; all blocks have the same."""

    @abstractmethod
    def fill_initial(self, tensor: Floats, name: str, key: tuple[int, int, int], stored: Stored) -> None:
        """Fill one trainable tensor with its initial values.

        Args:
            tensor: Overwritten.
            name: Its name in its part.
            key: (seed, number of the part, position in the part): a random stream of its own for each tensor, so that
                values do not depend on which others are trained or in which order they are filled.
            stored: The weights of its part.
        """

    @abstractmethod
    def check(self, config: ModelConfig) -> None:
        """Check the scheme against its model.

        Raises:
            UsageError: It cannot train this model.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return a few words for people: ``LoRA rank 8``."""

    @property
    def scale(self) -> float:
        """The factor on what adapters add to a product."""
        return 1.0

    @property
    def adapter_rank(self) -> int:
        """The largest rank of a LoRA adapter; kernels have a workspace for it."""
        return 0

    @property
    def rows_before(self) -> int:
        """Virtual tokens that stand before the sequence as embeddings; they take its first positions."""
        return 0

    @property
    def first_position(self) -> int:
        """The position of the first token of the sequence, after virtual keys and values."""
        return 0


def check_length(scheme: Scheme, config: ModelConfig, seq_len: int) -> None:
    """Check that a sequence has positions in the model, those of virtual tokens before it included.

    Raises:
        UsageError: It is too long; the message says the longest that is not.
    """
    virtual = scheme.rows_before + scheme.first_position
    if seq_len + virtual <= config.longest_sequence:
        return
    longest = config.longest_sequence - virtual
    remedy = f"shorten it to {longest}" if longest > 0 else "lower --virtual-tokens"
    raise UsageError(
        f"--seq-len {seq_len}{f' and {virtual} virtual tokens' if virtual else ''} is above the model's "
        f"max_position_embeddings, {config.longest_sequence}; {remedy}"
    )


def random_stream(key: tuple[int, int, int]) -> np.random.Generator:
    """Return the random stream of one tensor (see ``Scheme.fill_initial``)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
