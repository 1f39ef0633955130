"""What of a model is trained: the one description that block programs, lowering, sessions and exporters read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from memsim.errors import UsageError
from memsim.models.config import ModelConfig

if TYPE_CHECKING:  # the command line knows schemes by name before anything needs an array
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

MAX_LABELS = 4096

CLASSIFIER_STD = 0.02
"""Of a new classifier's weights: transformers' ``initializer_range`` in every family here."""


class Stored(Protocol):
    """What initial values may be taken from: the weights of one part."""

    def vector(self, name: str) -> "Floats":
        """Return the stored vector ``name`` of this part."""

    def matrix(self, name: str) -> "Floats":
        """Return the stored matrix ``name`` of this part, without its quantisation."""

    def has(self, name: str) -> bool:
        """Return whether this part has the vector or matrix ``name``."""

    def embeddings(self, where: "NDArray[np.float64]") -> "Floats":
        """Return N embeddings [N, C] as a sequence gets them: ``where`` [N] are places in the vocabulary, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Scheme(ABC):
    """One way of fine-tuning. Its trainable tensors are float32, and inputs of the block programs by their names.

    A tensor that has the name of a stored one takes its place. What the other names mean is said in ``decoder``.

    Attributes:
        name: What ``--scheme`` calls it.
        labels: Classes of the classifier that is trained beside the rest, and tells whole sequences apart; 0 where the
            model predicts tokens.
    """

    name: ClassVar[str]
    labels: int = field(default=0, kw_only=True)

    def shapes(self, config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
        """Return the trainable tensors of ``part`` as name -> shape, in forward order; all blocks have the same."""
        own = self.own_shapes(config, part)
        return own | classifier_shapes(config, self.labels) if part == "head" and self.labels else own

    @abstractmethod
    def own_shapes(self, config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
        """Return ``shapes`` without those of a classifier."""

    def fill_initial(self, tensor: "Floats", name: str, key: tuple[int, int, int], stored: Stored) -> None:
        """Fill one trainable tensor with its initial values.

        Args:
            tensor: Overwritten.
            name: Its name in its part.
            key: (seed, number of the part, position in the part): a random stream of its own for each tensor, so that
                values do not depend on which others are trained or in which order they are filled.
            stored: The weights of its part.
        """
        if self.labels and name in _CLASSIFIERS:
            fill_classifier(tensor, name, key, stored)
        else:
            self.fill_own(tensor, name, key, stored)

    @abstractmethod
    def fill_own(self, tensor: "Floats", name: str, key: tuple[int, int, int], stored: Stored) -> None:
        """Fill one of ``own_shapes`` (see ``fill_initial``)."""

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
    def trains_matrices(self) -> bool:
        """Whether every matrix is trained too, in bf16 on disk: beside ``shapes``, which are float32."""
        return False

    @property
    def rows_before(self) -> int:
        """Virtual tokens that stand before the sequence as embeddings; they take its first positions."""
        return 0

    @property
    def first_position(self) -> int:
        """The position of the first token of the sequence, after virtual keys and values."""
        return 0


_CLASSIFIERS = (
    "score.weight",
    *(f"classifier.{module}.{kind}" for module in ("dense", "out_proj") for kind in ("weight", "bias")),
)


def classifier_shapes(config: ModelConfig, labels: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a trained classifier, under the names of transformers' classes.

    A causal model has a matrix alone, of the last token; RoBERTa two with biases, of the first one.
    """
    c = config.hidden_size
    if config.family.causal:
        return {"score.weight": (labels, c)}
    return {
        "classifier.dense.weight": (c, c),
        "classifier.dense.bias": (c,),
        "classifier.out_proj.weight": (labels, c),
        "classifier.out_proj.bias": (labels,),
    }


def with_classifier(model: ModelConfig, scheme: Scheme) -> ModelConfig:
    """Return the model with the classifier that ``scheme`` trains in the place of its head, where it is RoBERTa's.

    A causal model's classifier is a tensor of the scheme alone.
    """
    return replace(model, num_labels=scheme.labels) if scheme.labels and not model.family.causal else model


def fill_classifier(tensor: "Floats", name: str, key: tuple[int, int, int], stored: Stored) -> None:
    """Start from the model's own classifier or, in a model without one, as transformers does: small random weights."""
    module, _, kind = name.rpartition(".")
    if module != "score" and stored.has(module):
        tensor[...] = stored.vector(name) if kind == "bias" else stored.matrix(module)
    elif kind == "bias":
        tensor.fill(0)
    else:
        random_stream(key).standard_normal(dtype="float32", out=tensor)
        tensor *= CLASSIFIER_STD


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


def random_stream(key: tuple[int, int, int]) -> "np.random.Generator":
    """Return the random stream of one tensor (see ``Scheme.fill_initial``)."""
    import numpy as np

    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
