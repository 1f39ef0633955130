"""The configuration of a decoder-only language model, with Hugging Face's field names."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from memsim.errors import InputError

SUPPORTED_MODEL_TYPES = ("qwen2",)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Dimensions and constants of one model.

    Shape letters used throughout: C hidden_size, H intermediate_size, NH num_attention_heads,
    NKV num_key_value_heads, D head_dim, V vocab_size, L num_hidden_layers.

    Attributes:
        model_type: Family, as in Hugging Face's ``config.json``.
        attention_bias: Whether q, k and v projections have a bias (Qwen2 does).
        tie_word_embeddings: Whether the head reuses the token embedding.
        layer_types: The kind of each block, where not all are ``full_attention``.
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
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    layer_types: tuple[str, ...] | None = None

    def layer_type(self, index: int) -> str:
        """Return the kind of block ``index``; blocks of a kind run the same program."""
        return self.layer_types[index] if self.layer_types else "full_attention"

    def projections(self) -> dict[str, tuple[int, int]]:
        """Return the seven weight matrices of a block as name -> (out_features, in_features), in forward order."""
        c, h = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "self_attn.q_proj": (q, c),
            "self_attn.k_proj": (kv, c),
            "self_attn.v_proj": (kv, c),
            "self_attn.o_proj": (c, q),
            "mlp.gate_proj": (h, c),
            "mlp.up_proj": (h, c),
            "mlp.down_proj": (c, h),
        }

    def has_bias(self, projection: str) -> bool:
        """Return whether ``projection`` (such as ``self_attn.q_proj``) has a bias vector."""
        return self.attention_bias and projection in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

    def n_parameters(self) -> int:
        """Return the number of base parameters; a tied head counts once."""
        block = sum(out * inp for out, inp in self.projections().values()) + 2 * self.hidden_size
        block += sum(out for name, (out, _) in self.projections().items() if self.has_bias(name))
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * block + embeddings + self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data for JSON."""
        return asdict(self)


def _integer(data: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = data.get(key, default)
    if value is None:
        raise InputError(f"{where} has no {key!r}")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise InputError(f"{where}: {key!r} must be a positive integer, not {value!r}")
    return value


def _number(data: Mapping[str, Any], key: str, where: str) -> float:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise InputError(f"{where}: {key!r} must be a positive number, not {value!r}")
    return float(value)


def config_from_dict(data: Mapping[str, Any], where: str) -> ModelConfig:
    """Read a Hugging Face ``config.json`` (or our own ``ModelConfig.to_dict``), untrusted.

    Both spellings of the RoPE base are read: ``rope_theta`` and, since transformers 5, ``rope_parameters``.

    Args:
        data: The parsed JSON object.
        where: What the error messages call its file.

    Raises:
        InputError: An unknown architecture, a missing or impossible field, or a feature that is not modelled.
    """
    model_type = data.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        supported = ", ".join(SUPPORTED_MODEL_TYPES)
        raise InputError(f"{where}: model_type {model_type!r} is not supported; memsim runs: {supported}")
    if data.get("hidden_act", "silu") != "silu":
        raise InputError(f"{where}: hidden_act {data['hidden_act']!r} is not supported; {model_type} uses 'silu'")
    if data.get("use_sliding_window"):
        raise InputError(f"{where}: use_sliding_window is not supported")
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise InputError(f"{where}: rope_parameters must be an object")
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise InputError(f"{where}: RoPE scaling {rope.get('rope_type', rope.get('type'))!r} is not supported")
    heads = _integer(data, "num_attention_heads", where)
    hidden_size = _integer(data, "hidden_size", where)
    config = ModelConfig(
        model_type=model_type,
        vocab_size=_integer(data, "vocab_size", where),
        hidden_size=hidden_size,
        intermediate_size=_integer(data, "intermediate_size", where),
        num_hidden_layers=_integer(data, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_key_value_heads=_integer(data, "num_key_value_heads", where, heads),
        head_dim=_integer({"head_dim": data.get("head_dim") or hidden_size // heads}, "head_dim", where),
        rms_norm_eps=_number(data, "rms_norm_eps", where),
        rope_theta=_number({"rope_theta": rope.get("rope_theta", data.get("rope_theta"))}, "rope_theta", where),
        max_position_embeddings=_integer(data, "max_position_embeddings", where),
        tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
        attention_bias=model_type == "qwen2",
    )
    if heads % config.num_key_value_heads:
        raise InputError(f"{where}: {heads} query heads cannot share {config.num_key_value_heads} key-value heads")
    if config.head_dim % 2:
        raise InputError(f"{where}: head_dim {config.head_dim} is odd; RoPE rotates pairs")
    return config
