"""LoRA adapters: which projections get one, their shapes, names and initial values.

y = W x + scale * B (A x) with A [R, in_features], B [out_features, R] and scale = alpha / rank (PEFT's convention).
"""

from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import TYPE_CHECKING, ClassVar

from memsim.errors import UsageError
from memsim.models.config import ModelConfig
from memsim.models.parts import matrices, part_names
from memsim.models.scheme import Scheme, Stored, random_stream

if TYPE_CHECKING:
    from memsim.models.scheme import Floats

ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraConfig(Scheme):
    """Rank, alpha and the projections (short names such as ``q_proj``) that carry an adapter."""

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float = 16.0
    target_modules: tuple[str, ...] = ALL_PROJECTIONS

    @property
    def scale(self) -> float:
        """The factor on B A x."""
        return self.alpha / self.rank

    @property
    def adapter_rank(self) -> int:
        """R, of all adapters."""
        return self.rank

    def targets(self, projection: str) -> bool:
        """Return whether ``projection`` (``self_attn.q_proj``) carries an adapter."""
        return projection.rpartition(".")[2] in self.target_modules

    def own_shapes(self, config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
        """Return the adapter tensors of ``part``: ``adapter_shapes`` of a block, none elsewhere."""
        return dict(adapter_shapes(config, self)) if part.startswith("block_") else {}

    def fill_own(self, tensor: "Floats", name: str, key: tuple[int, int, int], stored: Stored) -> None:
        """Start from PEFT's initial values (see the function of this name)."""
        fill_initial(tensor, name, *key)

    def check(self, config: ModelConfig) -> None:
        """Check the adapter against its model (see ``check_lora``)."""
        check_lora(self, config)

    def describe(self) -> str:
        """Return ``LoRA rank 8``."""
        return f"LoRA rank {self.rank}"


def module_names(config: ModelConfig) -> dict[str, str]:
    """Return the projections of a block: name of the module in its transformers class -> ours."""
    return {config.family.names.get(name, name): name for name in config.projections()}


def with_our_names(lora: LoraConfig, config: ModelConfig) -> LoraConfig:
    """Return ``lora`` with targets that are Hugging Face's names (``query``, ``fc1``) replaced by ours.

    A name that several projections of a block end in, such as RoBERTa's ``dense``, means all of them.
    """
    theirs: dict[str, list[str]] = {}
    for module, ours in module_names(config).items():
        theirs.setdefault(module.rpartition(".")[2], []).append(ours.rpartition(".")[2])
    names = [name for target in lora.target_modules for name in theirs.get(target, [target])]
    return replace(lora, target_modules=tuple(dict.fromkeys(names)))


def check_lora(lora: LoraConfig, config: ModelConfig) -> None:
    """Check an adapter against its model.

    Raises:
        UsageError: Rank below 1 or above a matrix, alpha not a positive number, or unknown or no target modules.
    """
    if lora.rank < 1:
        raise UsageError(f"--lora-rank {lora.rank} is below 1")
    if not 0 < lora.alpha < float("inf"):
        raise UsageError(f"--lora-alpha {lora.alpha} must be a positive number")
    unknown = sorted(set(lora.target_modules) - set(ALL_PROJECTIONS))
    if {"embed_tokens", "lm_head"} & set(unknown):
        raise UsageError(
            f"--target-modules {','.join(unknown)}: embed_tokens and lm_head carry no adapter, since their rows are "
            f"gathered and streamed packed; choose from {','.join(ALL_PROJECTIONS)}"
        )
    if unknown or not lora.target_modules:
        raise UsageError(f"--target-modules {','.join(unknown) or '(empty)'}: choose from {','.join(ALL_PROJECTIONS)}")
    if not any(lora.targets(name) for name in config.projections()):
        raise UsageError(f"--target-modules {','.join(lora.target_modules)}: {config.model_type} has none of them")
    for name, shape in config.projections().items():
        if lora.targets(name) and lora.rank > min(shape):
            raise UsageError(f"--lora-rank {lora.rank} is above {name}, which is {shape[0]} x {shape[1]}")


def adapter_shapes(config: ModelConfig, lora: LoraConfig) -> dict[str, tuple[int, int]]:
    """Return the adapter tensors of **one** block, as name -> shape, in forward order.

    Names are Hugging Face's module names with PEFT's suffixes: ``self_attn.q_proj.lora_A`` [R, in_features],
    ``self_attn.q_proj.lora_B`` [out_features, R].
    """
    shapes: dict[str, tuple[int, int]] = {}
    for name, (out_features, in_features) in config.projections().items():
        if lora.targets(name):
            shapes[f"{name}.lora_A"] = (lora.rank, in_features)
            shapes[f"{name}.lora_B"] = (out_features, lora.rank)
    return shapes


def n_trainable(config: ModelConfig, scheme: Scheme) -> int:
    """Return the number of trainable parameters of the whole model under any scheme."""
    shapes = [shape for part in part_names(config) for shape in scheme.shapes(config, part).values()]
    if scheme.trains_matrices:
        shapes += [shape for part in part_names(config) for shape in matrices(config, part).values()]
    return sum(map(prod, shapes))


def fill_initial(tensor: "Floats", name: str, seed: int, block: int, position: int) -> None:
    """Fill one adapter tensor with PEFT's initial values: A uniform in +-1 / sqrt(in_features), B zero.

    Each tensor has a random stream of its own, keyed by (seed, block, position in the block), so that values do not
    depend on which other tensors are trained or in which order they are filled.
    """
    if name.endswith(".lora_B"):
        tensor.fill(0)
        return
    random_stream((seed, block, position)).random(dtype="float32", out=tensor)
    tensor -= 0.5
    tensor *= 2 / sqrt(tensor.shape[1])
