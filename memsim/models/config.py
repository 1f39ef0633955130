"""The configuration of a language model, with Hugging Face's field names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.models.family import FAMILIES, Family
from memsim.models.fields import boolean, integer, mapping, number
from memsim.models.rope import Rope, RopeScaling, read_rope

SUPPORTED_MODEL_TYPES = tuple(FAMILIES)
FULL, SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")

_MAX_LAYERS = 10_000
_MAX_LABELS = 100_000
_EPSILONS = (1e-30, 1.0)  # published ones are from 1e-12 to 1e-5; less is 0 in f32
_TOKEN_PREDICTORS = ("RobertaForMaskedLM",)
_CLASSIFIERS = ("RobertaForSequenceClassification",)
_PROBLEM = "single_label_classification"
# Fields that change what a model computes, with the only value that memsim has; missing and null are fine.
_UNSUPPORTED = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "use_bidirectional_attention": False,
}


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

    @property
    def family(self) -> Family:
        """What its ``model_type`` fixes."""
        return FAMILIES[self.model_type]

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


def config_from_dict(data: Mapping[str, Any], where: str) -> ModelConfig:
    """Read a Hugging Face ``config.json`` (or our own ``ModelConfig.to_dict``), untrusted.

    Of a multimodal ``gemma3`` file, the text model is read.

    Args:
        data: The parsed JSON object.
        where: What the error messages call its file.

    Raises:
        InputError: An unknown architecture, a missing or impossible field, or a feature that is not modelled.
    """
    if data.get("model_type") == "gemma3":
        data = {**mapping(data, "text_config", where), "model_type": "gemma3_text"}
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(SUPPORTED_MODEL_TYPES)
        raise InputError(f"{where}: model_type {shown(model_type)} is not supported; memsim runs: {supported}")
    family = FAMILIES[model_type]
    data = {**family.defaults, **{key: value for key, value in data.items() if value is not None}}
    data |= {ours: data[theirs] for ours, theirs in family.fields.items() if theirs in data}
    _refuse_unsupported(data, family, where)
    heads, hidden_size = integer(data, "num_attention_heads", where), integer(data, "hidden_size", where)
    data = {"num_key_value_heads": heads, "head_dim": hidden_size // heads, **data}
    rope, local = None, None
    if family.first_position is None:
        rope, local = read_rope(data, family.window == "pattern", where)
    sliding_window, layer_types = _read_layers(data, family, where)
    config = ModelConfig(
        model_type=model_type,
        vocab_size=integer(data, "vocab_size", where),
        hidden_size=hidden_size,
        intermediate_size=integer(data, "intermediate_size", where),
        num_hidden_layers=integer(data, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_key_value_heads=integer(data, "num_key_value_heads", where),
        head_dim=integer(data, "head_dim", where),
        rms_norm_eps=number(data, "rms_norm_eps", where, *_EPSILONS),
        rope_theta=rope.theta if rope else None,
        max_position_embeddings=integer(data, "max_position_embeddings", where),
        tie_word_embeddings=boolean(data, "tie_word_embeddings", where),
        attention_bias=boolean(data, "attention_bias", where) or family.always_biased,
        rope_scaling=rope.scaling if rope else None,
        rope_local_base_freq=local.theta if local else None,
        sliding_window=sliding_window,
        layer_types=layer_types,
        query_pre_attn_scalar=integer(data, scalar, where) if (scalar := "query_pre_attn_scalar") in data else None,
        type_vocab_size=integer(data, "type_vocab_size", where) if family.normed_embedding else None,
        num_labels=_read_labels(data, family, where),
    )
    if heads % config.num_key_value_heads:
        raise InputError(f"{where}: {heads} query heads cannot share {config.num_key_value_heads} key-value heads")
    if config.longest_sequence < 1:
        raise InputError(f"{where}: 'max_position_embeddings' {config.max_position_embeddings} leaves no position")
    if config.head_dim % 2 and config.ropes():
        raise InputError(f"{where}: head_dim {config.head_dim} is odd; RoPE rotates pairs")
    return config


def _refuse_unsupported(data: Mapping[str, Any], family: Family, where: str) -> None:
    key, value = family.activation_key
    if data.get(key, value) != value:
        raise InputError(f"{where}: {key} {shown(data[key])} is not supported; {data['model_type']} uses {value!r}")
    for key, neutral in {**_UNSUPPORTED, **family.fixed}.items():
        if data.get(key, neutral) != neutral:
            raise InputError(f"{where}: {key} {shown(data[key])} is not supported")
    if data.get("word_embed_proj_dim", data.get("hidden_size")) != data.get("hidden_size"):
        raise InputError(f"{where}: word_embed_proj_dim {shown(data['word_embed_proj_dim'])} is not supported")


def _read_labels(data: Mapping[str, Any], family: Family, where: str) -> int | None:
    """Return the number of classes of a sequence classifier, None for a model that predicts tokens."""
    architectures = data.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not family.transformed_head:
        return None
    if name is None:  # our own file
        return integer(data, "num_labels", where) if "num_labels" in data else None
    if name not in _CLASSIFIERS + _TOKEN_PREDICTORS:
        known = ", ".join(_CLASSIFIERS + _TOKEN_PREDICTORS)
        raise InputError(f"{where}: the architecture {shown(name)} has no head that memsim knows; it has {known}")
    if name in _TOKEN_PREDICTORS:
        return None
    if data.get("problem_type", _PROBLEM) != _PROBLEM:
        raise InputError(f"{where}: problem_type {shown(data['problem_type'])} is not supported; memsim has {_PROBLEM}")
    names = mapping(data, "id2label", where)
    labels = integer({"num_labels": 2, **({"num_labels": len(names)} if names else {}), **data}, "num_labels", where)
    if not 1 < labels <= _MAX_LABELS:  # one label is a regression to transformers
        raise InputError(f"{where}: {labels} labels; a classifier has 2 to {_MAX_LABELS:,}")
    return labels


def _read_layers(data: Mapping[str, Any], family: Family, where: str) -> tuple[int | None, tuple[str, ...] | None]:
    """Return the sliding window, and the kind of each block; None twice if no block has a window."""
    layers = integer(data, "num_hidden_layers", where)
    # Before anything is listed by layer: a hostile count must not make a list of billions.
    if layers > _MAX_LAYERS:
        raise InputError(f"{where}: {layers} layers are over the {_MAX_LAYERS} that memsim takes")
    if family.window == "none" or (family.window == "all" and "sliding_window" not in data):
        return None, None
    types = data.get("layer_types")
    if types is None:
        types = _layer_types(data, family, layers, where)
    if not isinstance(types, list | tuple) or len(types) != layers or any(kind not in LAYER_TYPES for kind in types):
        raise InputError(f"{where}: 'layer_types' must be a list of {layers}, each {' or '.join(LAYER_TYPES)}")
    if SLIDING not in types:
        return None, None
    return integer(data, "sliding_window", where), tuple(types)


def _layer_types(data: Mapping[str, Any], family: Family, layers: int, where: str) -> list[str]:
    """Return what ``layer_types`` means where a file does not have it."""
    if family.window == "pattern":
        pattern = integer(data, "sliding_window_pattern", where)
        return [SLIDING if (index + 1) % pattern else FULL for index in range(layers)]
    if family.window == "all":
        return [SLIDING] * layers
    if not boolean(data, "use_sliding_window", where):
        return [FULL] * layers
    full = integer(data, "max_window_layers", where)
    return [SLIDING if index >= full else FULL for index in range(layers)]
