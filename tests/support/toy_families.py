"""Toy configurations: a small model, and one of every family that uses all that the family has."""

from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict


def toy_config(**changes: object) -> ModelConfig:
    fields = {
        "model_type": "qwen2",
        "vocab_size": 301,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "attention_bias": True,
    }
    return ModelConfig(**(fields | changes))  # type: ignore[arg-type]


_LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

# Of every family: all that it has, in sizes that are no multiples of a tile, and windows shorter than a sequence.
FAMILY_CHANGES: dict[str, dict[str, object]] = {
    "llama": {"head_dim": 16, "rope_scaling": _LLAMA3_ROPE, "tie_word_embeddings": False},
    "llama-linear": {"model_type": "llama", "attention_bias": True, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "mistral": {"sliding_window": 5, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"head_dim": 20},
    "opt": {"num_key_value_heads": None, "rms_norm_eps": None, "ffn_dim": 100},
    "roberta": {
        "num_key_value_heads": None, "rms_norm_eps": None, "layer_norm_eps": 1e-5, "max_position_embeddings": 150,
        "type_vocab_size": 2,
    },
    "gemma3_text": {
        "head_dim": 32, "num_hidden_layers": 4, "sliding_window": 6, "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 24, "rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}  # fmt: skip


def family_config(name: str) -> ModelConfig:
    """Return the toy of a family."""
    changes = {"model_type": name, "attention_bias": False} | FAMILY_CHANGES[name]
    return config_from_dict(toy_config().to_dict() | changes, name)
