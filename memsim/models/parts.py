"""What the files of a pack hold: the one description read by pack writers, pack readers and block programs.

A model is cut into *parts*, one file each: ``embed`` (token embedding), ``block_000`` ... (one transformer block
each) and ``head`` (final norm, and the output matrix unless it is tied to the embedding; or a classifier).

A matrix of N rows (out_features) and K columns (in_features) is stored as two tensors:

``<name>.q``       uint32 [N16, K8, 16]: the dword at [p, j, l] holds row 16 p + l, columns 8 j ... 8 j + 7 as
                   nibbles, column 8 j in the lowest four bits; or columns 4 j ... 4 j + 3 as bytes in [N16, 2 K8, 16].
``<name>.scales``  float16 [KG, 16 N16]: one scale for each group of ``group_size`` columns of a row. A format with
                   offsets has two rows a group: scales, and below them the offsets.

with N16 = ceil(N / 16), KG = ceil(K / group_size) and K8 = KG * group_size / 8; scales and offsets of rows beyond N
are zero, and what is beyond K counts nowhere. ``memsim.ir.matrix_format`` says what a level means: in ``symmetric``,
weight[n, k] = level * scale, and levels are two's complement. One dword of 16 neighbouring rows fills a 512-bit
register, so this layout serves the forward product and the backward one alike.
"""

from dataclasses import dataclass
from math import prod

from memsim.ir.matrix_format import MatrixFormat, symmetric
from memsim.models.config import ModelConfig
from memsim.models.matrix_formats import Packing, formats_of

GROUP_SIZES = (32, 64)

_ITEM_BYTES = {"u32": 4, "f16": 2, "bf16": 2, "f32": 4}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and element type (``u32``, ``f16``, ``bf16`` or ``f32``) of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def n_bytes(self) -> int:
        """Size in bytes, without padding."""
        return prod(self.shape) * _ITEM_BYTES[self.dtype]


def packed_matrix(name: str, n_rows: int, n_columns: int, chosen: MatrixFormat | int) -> dict[str, TensorSpec]:
    """Return the two tensors that store matrix ``name`` of shape [n_rows, n_columns].

    ``chosen`` is its format, or the group size of symmetric INT4.
    """
    own = symmetric(chosen) if isinstance(chosen, int) else chosen
    q, scales = own.shapes(n_rows, n_columns)
    return {f"{name}.q": TensorSpec(q, "u32"), f"{name}.scales": TensorSpec(scales, "f16")}


def block_part(index: int) -> str:
    """Return the part name of transformer block ``index``."""
    return f"block_{index:03d}"


def part_names(config: ModelConfig) -> list[str]:
    """Return the parts of a model in forward order."""
    return ["embed", *(block_part(index) for index in range(config.num_hidden_layers)), "head"]


def head_matrix(config: ModelConfig) -> tuple[str, str]:
    """Return (part, matrix name) of the output projection: the embedding itself when it is tied."""
    if config.num_labels is not None:
        return "head", "classifier.out_proj"
    return ("embed", "embed_tokens") if config.tie_word_embeddings else ("head", "lm_head")


def matrices(config: ModelConfig, part: str) -> dict[str, tuple[int, int]]:
    """Return the quantised matrices of ``part`` as name -> (out_features, in_features)."""
    if part == "embed":
        return {"embed_tokens": (config.vocab_size, config.hidden_size)}
    if part == "head":
        return config.head_matrices()
    return config.projections()


def vectors(config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
    """Return the float32 tensors of ``part`` (norm weights, biases, learned positions) as name -> shape.

    A norm weight is the factor itself: where a checkpoint holds w for 1 + w (Gemma), a pack holds 1 + w.
    """
    if part == "embed":
        return config.embedding_vectors()
    if part == "head":
        return config.head_vectors()
    biases = {f"{name}.bias": out for name, (out, _) in config.projections().items() if config.has_bias(name)}
    return {name: (length,) for name, length in (config.norms() | biases).items()}


def part_tensors(config: ModelConfig, part: str, packing: Packing) -> dict[str, TensorSpec]:
    """Return every tensor that the file of ``part`` holds, as name -> spec."""
    specs: dict[str, TensorSpec] = {}
    formats = formats_of(packing)
    for name, (n_rows, n_columns) in matrices(config, part).items():
        specs |= packed_matrix(name, n_rows, n_columns, formats.of(part, name))
    return specs | {name: TensorSpec(shape, "f32") for name, shape in vectors(config, part).items()}
