"""The fine-tuning schemes besides LoRA, and the table of all."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from memsim.errors import UsageError
from memsim.models.config import ModelConfig
from memsim.models.lora import LoraConfig
from memsim.models.parts import vectors
from memsim.models.scheme import MAX_LABELS, Scheme, Stored, random_stream

if TYPE_CHECKING:
    from memsim.models.scheme import Floats

MAX_VIRTUAL_TOKENS = 4096

PREFIX_STD = 0.02
"""Of a prefix's first keys and values. PEFT's own is 1, which drowns what a trained model attends to."""


@dataclass(frozen=True, slots=True)
class Norms(Scheme):
    """The weights of all norms, and all biases but that of the vocabulary."""

    name: ClassVar[str] = "norms"

    def own_shapes(self, config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
        """Return the stored vectors of ``part``, tables of the embedding left out.

        Of a head that a classifier takes the place of, there are none.
        """
        if part == "head" and self.labels and not config.family.causal:
            return {}
        tables = ("embed_positions.weight", "embed_types.weight", "lm_head.bias")
        return {name: shape for name, shape in vectors(config, part).items() if name not in tables}

    def fill_own(self, tensor: "Floats", name: str, key: tuple[int, int, int], stored: Stored) -> None:
        """Start from the model's own."""
        tensor[...] = stored.vector(name)

    def check(self, config: ModelConfig) -> None:
        """Every model has norms."""

    def describe(self) -> str:
        """Return ``norms and biases``."""
        return "norms and biases"


@dataclass(frozen=True, slots=True)
class Full(Norms):
    """Every weight: vectors as float32, matrices in bf16 on disk, perturbed while they are streamed (``tiles``)."""

    name: ClassVar[str] = "full"

    def own_shapes(self, config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
        """Return the stored vectors of ``part``; the matrices are those of ``tiled_matrices``."""
        return vectors(config, part)

    def check(self, config: ModelConfig) -> None:
        """Check the family.

        Raises:
            UsageError: It is not causal.
        """
        if not config.family.causal:
            raise UsageError(f"--scheme full is for causal models; {config.model_type} trains with --scheme lora")

    def describe(self) -> str:
        """Return ``all weights``."""
        return "all weights"

    @property
    def trains_matrices(self) -> bool:
        """They are."""
        return True


@dataclass(frozen=True, slots=True)
class Prefix(Scheme):
    """Virtual keys and values before those of the sequence, in every block (arXiv 2101.00190, without its MLP).

    They are neither rotated nor normed, and the sequence's positions begin after them, as in PEFT.
    """

    name: ClassVar[str] = "prefix"
    virtual_tokens: int = 20

    def own_shapes(self, config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
        """Return keys and values [P, NKV D]."""
        if not part.startswith("block_"):
            return {}
        shape = (self.virtual_tokens, config.num_key_value_heads * config.head_dim)
        return {"self_attn.prefix_k": shape, "self_attn.prefix_v": shape}

    def fill_own(self, tensor: "Floats", name: str, key: tuple[int, int, int], stored: Stored) -> None:
        """Start from small random numbers: equal rows would stay equal."""
        random_stream(key).standard_normal(dtype="float32", out=tensor)
        tensor *= PREFIX_STD

    def check(self, config: ModelConfig) -> None:
        """Check the number of virtual tokens.

        Raises:
            UsageError: None, or too many.
        """
        _check_virtual_tokens(self.virtual_tokens)

    def describe(self) -> str:
        """Return ``prefix of 20``."""
        return f"prefix of {self.virtual_tokens}"

    @property
    def first_position(self) -> int:
        """After the virtual keys and values."""
        return self.virtual_tokens


@dataclass(frozen=True, slots=True)
class Prompt(Scheme):
    """Virtual tokens before the sequence, of which only the embeddings exist (arXiv 2104.08691)."""

    name: ClassVar[str] = "prompt"
    virtual_tokens: int = 20

    def own_shapes(self, config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
        """Return the embeddings [P, C]."""
        return {"prompt.weight": (self.virtual_tokens, config.hidden_size)} if part == "embed" else {}

    def fill_own(self, tensor: "Floats", name: str, key: tuple[int, int, int], stored: Stored) -> None:
        """Start from the embeddings of random tokens (PEFT's ``SAMPLE_VOCAB``)."""
        tensor[...] = stored.embeddings(random_stream(key).random(len(tensor)))

    def check(self, config: ModelConfig) -> None:
        """Check the number of virtual tokens.

        Raises:
            UsageError: None, or too many.
        """
        _check_virtual_tokens(self.virtual_tokens)

    def describe(self) -> str:
        """Return ``prompt of 20``."""
        return f"prompt of {self.virtual_tokens}"

    @property
    def rows_before(self) -> int:
        """The virtual tokens."""
        return self.virtual_tokens


@dataclass(frozen=True, slots=True)
class Head(Scheme):
    """A classifier alone: of the one labelled token, which is the last, or of RoBERTa's first; all else is frozen."""

    name: ClassVar[str] = "head"
    labels: int = 0

    def own_shapes(self, config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
        """Nothing beside the classifier is trained."""
        return {}

    def fill_own(self, tensor: "Floats", name: str, key: tuple[int, int, int], stored: Stored) -> None:
        """Fill nothing: there is nothing beside the classifier."""

    def check(self, config: ModelConfig) -> None:
        """Check the number of labels.

        Raises:
            UsageError: Fewer than two, or too many.
        """
        if not 2 <= self.labels <= MAX_LABELS:
            raise UsageError(
                f"--scheme head trains a classifier of 2 to {MAX_LABELS} labels, not {self.labels}; "
                f"plain text has none: choose a classification task with --task"
            )

    def describe(self) -> str:
        """Return ``classifier head``."""
        return "classifier head"


def _check_virtual_tokens(count: int) -> None:
    if not 1 <= count <= MAX_VIRTUAL_TOKENS:
        raise UsageError(f"--virtual-tokens {count} must be from 1 to {MAX_VIRTUAL_TOKENS}")


SCHEMES: dict[str, type[Scheme]] = {kind.name: kind for kind in (LoraConfig, Norms, Prefix, Prompt, Head, Full)}


def make_scheme(name: str, lora: LoraConfig, virtual_tokens: int, labels: int) -> Scheme:
    """Return the scheme called ``name``, with those of the settings that it has, and a classifier of ``labels``.

    Raises:
        UsageError: No such scheme, or too many labels.
    """
    if name not in SCHEMES:
        raise UsageError(f"no scheme called {name!r}; schemes: {', '.join(SCHEMES)}")
    if not 0 <= labels <= MAX_LABELS:
        raise UsageError(f"a classifier tells at most {MAX_LABELS} labels apart, not {labels}")
    made: dict[str, Scheme] = {
        "lora": replace(lora, labels=labels),
        "norms": Norms(labels=labels),
        "prefix": Prefix(virtual_tokens, labels=labels),
        "prompt": Prompt(virtual_tokens, labels=labels),
        "head": Head(labels),
        "full": Full(),
    }
    return made[name]


def scheme_to_dict(scheme: Scheme) -> dict[str, Any]:
    """Return ``scheme`` as plain data for JSON; ``scheme_from_dict`` reads it."""
    return {"name": scheme.name, **asdict(scheme)}


def scheme_from_dict(data: Mapping[str, Any]) -> Scheme:
    """Return the scheme that ``scheme_to_dict`` wrote."""
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    name = str(settings.pop("name"))
    return SCHEMES[name](**settings)
