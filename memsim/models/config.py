"""The configuration of a language model, with Hugging Face's field names."""

from dataclasses import asdict, dataclass, replace
from functools import cache
from math import prod
from typing import Any

from memsim.models.family import FAMILIES, Family
from memsim.models.rope import Rope, RopeScaling

SUPPORTED_MODEL_TYPES = tuple(FAMILIES)
FULL, SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")
MULTIMODAL = {"gemma3": "gemma3_text"}
"""The ``model_type`` of a model that sees pictures too -> that of the language model in it."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Dimensions and constants of one model.

    Shape letters used throughout: C hidden_size, H intermediate_size, NH num_attention_heads,
    NKV num_key_value_heads, D head_dim, V vocab_size, L num_hidden_layers.

    Attributes:
        model_type: Family, as in Hugging Face's ``config.json``.
        rms_norm_eps: Of every norm, of LayerNorms too.
        rope_theta: None where positions are learned.
        attention_bias: Whether projections have a bias (``Family.biased`` says which).
        tie_word_embeddings: Whether the head reuses the token embedding.
        rope_scaling: Of the blocks without a sliding window, or of all.
        rope_local_base_freq: RoPE base of the blocks with a sliding window, if they have one of their own.
        sliding_window: Keys that a query of a ``sliding_attention`` block sees, itself included.
        layer_types: The kind of each block; None if all are ``full_attention``.
        query_pre_attn_scalar: Scores are divided by its root; None is head_dim.
        type_vocab_size: Token types, of which memsim uses the first.
        num_labels: Classes of a model that classifies whole sequences; None for one that predicts tokens.
        multimodal_type: The ``model_type`` of the model that sees pictures too, whose language model this is.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    rope_scaling: RopeScaling | None = None
    rope_local_base_freq: float | None = None
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    query_pre_attn_scalar: int | None = None
    type_vocab_size: int | None = None
    num_labels: int | None = None
    multimodal_type: str | None = None

    @property
    def family(self) -> Family:
        """What its ``model_type`` fixes."""
        return FAMILIES[self.model_type] if self.multimodal_type is None else _language_model(self.model_type)

    def layer_type(self, index: int) -> str:
        """Return the kind of block ``index``; blocks of a kind run the same program."""
        return self.layer_types[index] if self.layer_types else FULL

    def window(self, layer_type: str) -> int:
        """Return the keys that a query sees in a block of that kind; 0 is all before it."""
        return (self.sliding_window or 0) if layer_type == SLIDING else 0

    @property
    def attention_scale(self) -> float:
        """The factor on the scores."""
        return float((self.query_pre_attn_scalar or self.head_dim) ** -0.5)

    @property
    def embedding_scale(self) -> float:
        """The factor on token embeddings."""
        return float(self.hidden_size**0.5) if self.family.scaled_embedding else 1.0

    def ropes(self) -> dict[str, Rope]:
        """Return the model's rotations by name; ``rope_of`` says which blocks have which."""
        ropes = {} if self.rope_theta is None else {"rope": Rope(self.rope_theta, self.rope_scaling)}
        if self.rope_local_base_freq is not None:
            ropes["rope_local"] = Rope(self.rope_local_base_freq)
        return ropes

    def rope_of(self, layer_type: str) -> str:
        """Return the name of the rotation in a block of that kind."""
        return "rope_local" if layer_type == SLIDING and self.rope_local_base_freq is not None else "rope"

    def projections(self) -> dict[str, tuple[int, int]]:
        """Return the weight matrices of a block as name -> (out_features, in_features), in forward order."""
        c, h = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "self_attn.q_proj": (q, c),
            "self_attn.k_proj": (kv, c),
            "self_attn.v_proj": (kv, c),
            "self_attn.o_proj": (c, q),
            **({"mlp.gate_proj": (h, c)} if self.family.gated else {}),
            "mlp.up_proj": (h, c),
            "mlp.down_proj": (c, h),
        }

    def norms(self) -> dict[str, int]:
        """Return the weights (and biases) of a block's norms as name -> length."""
        lengths = {tensor: self.hidden_size for name in self.family.norms for tensor in self.norm_tensors(name)}
        heads = {f"self_attn.{name}_norm.weight": self.head_dim for name in "qk"} if self.family.qk_norm else {}
        return lengths | heads

    def norm_tensors(self, name: str) -> list[str]:
        """Return the tensors of the norm ``name``; none for the empty name."""
        kinds = ("weight", "bias") if self.family.norm == "layernorm" else ("weight",)
        return [f"{name}.{kind}" for kind in kinds] if name else []

    def position_table(self) -> tuple[int, int] | None:
        """Return the shape of the table of learned positions, if there is one."""
        if self.family.first_position is None:
            return None
        return self.max_position_embeddings + self.family.extra_positions, self.hidden_size

    @property
    def longest_sequence(self) -> int:
        """Tokens that have a position."""
        table = self.position_table()
        return table[0] - (self.family.first_position or 0) if table else self.max_position_embeddings

    def embedding_vectors(self) -> dict[str, tuple[int, ...]]:
        """Return what is added to embeddings and norms them, as name -> shape."""
        table = self.position_table()
        tensors: dict[str, tuple[int, ...]] = {"embed_positions.weight": table} if table else {}
        if self.family.normed_embedding:
            tensors["embed_types.weight"] = (self.type_vocab_size or 1, self.hidden_size)
            tensors |= {name: (self.hidden_size,) for name in self.norm_tensors("embed_norm")}
        return tensors

    def head_matrices(self) -> dict[str, tuple[int, int]]:
        """Return the matrices of the head as name -> (out_features, in_features), a tied embedding left out."""
        c = self.hidden_size
        if self.num_labels is not None:
            return {"classifier.dense": (c, c), "classifier.out_proj": (self.num_labels, c)}
        first = {"head_dense": (c, c)} if self.family.transformed_head else {}
        return first | ({} if self.tie_word_embeddings else {"lm_head": (self.vocab_size, c)})

    def head_vectors(self) -> dict[str, tuple[int, ...]]:
        """Return the norm and the biases of the head as name -> shape."""
        if self.num_labels is not None:
            return {f"{name}.bias": (rows,) for name, (rows, _) in self.head_matrices().items()}
        tensors: dict[str, tuple[int, ...]] = {name: (self.hidden_size,) for name in self.norm_tensors("norm")}
        if self.family.transformed_head:
            tensors |= {"head_dense.bias": (self.hidden_size,), "lm_head.bias": (self.vocab_size,)}
        return tensors

    def has_bias(self, projection: str) -> bool:
        """Return whether ``projection`` (such as ``self_attn.q_proj``) has a bias vector."""
        return self.attention_bias and projection.rpartition(".")[2] in self.family.biased

    def n_parameters(self) -> int:
        """Return the number of base parameters; a tied head counts once."""
        block = sum(out * inp for out, inp in self.projections().values()) + sum(self.norms().values())
        block += sum(out for name, (out, _) in self.projections().items() if self.has_bias(name))
        others = (self.embedding_vectors(), self.head_matrices(), self.head_vectors())
        ends = self.vocab_size * self.hidden_size + sum(prod(shape) for group in others for shape in group.values())
        return self.num_hidden_layers * block + ends

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that have a value as plain data for JSON; ``config_from_dict`` reads it."""
        data = {key: value for key, value in asdict(self).items() if value is not None}
        if self.rope_scaling is not None:
            data["rope_scaling"] = {key: value for key, value in data["rope_scaling"].items() if value is not None}
        return data


@cache
def _language_model(model_type: str) -> Family:
    """Return a family with the names that its tensors have inside a multimodal model."""
    family = FAMILIES[model_type]
    prefix = f"{family.prefix}language_model."
    return replace(family, prefix=prefix, blocks=prefix + family.blocks.removeprefix(family.prefix))
