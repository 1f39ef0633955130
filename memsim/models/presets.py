"""The true dimensions of published models, from their ``config.json``.

Sources: the config.json files of Qwen/Qwen2.5-0.5B, -1.5B and -3B, Qwen/Qwen3-0.6B, meta-llama/Llama-3.2-1B and -3B,
lmsys/vicuna-7b-v1.5, mistralai/Mistral-7B-v0.1, facebook/opt-125m and -1.3b, FacebookAI/roberta-base and -large,
google/gemma-3-1b-pt and the text model of google/gemma-3-4b-pt (whose embedding has 64 rows more than the vocabulary of
262,144, for images). ``tiny`` is the model that memsim ships, trained by ``tools/pretrain_tiny.py``; its tokens are
bytes.
"""

from collections.abc import Mapping
from typing import Any

from memsim.errors import InputError
from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict

_QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
_LLAMA_3_2 = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8_192,
    },
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}
_LLAMA_2 = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4_096,
}
_MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32_000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "sliding_window": 4_096,
    "max_position_embeddings": 32_768,
}
_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
_OPT = {
    "model_type": "opt",
    "vocab_size": 50_272,
    "max_position_embeddings": 2_048,
}
_ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50_265,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
_GEMMA3 = {"model_type": "gemma3_text"}
_TINY = {
    "model_type": "qwen2",
    "vocab_size": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "max_position_embeddings": 1_024,
    "tie_word_embeddings": True,
}


def _sized(
    common: Mapping[str, Any], c: int, h: int, layers: int, heads: int, kv_heads: int, head_dim: int, **others: Any
) -> ModelConfig:
    sizes = {
        "hidden_size": c,
        "intermediate_size": h,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }
    return config_from_dict({**common, **sizes, **others}, "preset")


PRESETS = {
    "qwen2.5-0.5b": _sized(_QWEN2, 896, 4_864, 24, 14, 2, 64),
    "qwen2.5-1.5b": _sized(_QWEN2, 1_536, 8_960, 28, 12, 2, 128),
    "qwen2.5-3b": _sized(_QWEN2, 2_048, 11_008, 36, 16, 2, 128),
    "qwen3-0.6b": _sized(_QWEN3, 1_024, 3_072, 28, 16, 8, 128),
    "llama-3.2-1b": _sized(_LLAMA_3_2, 2_048, 8_192, 16, 32, 8, 64),
    "llama-3.2-3b": _sized(_LLAMA_3_2, 3_072, 8_192, 28, 24, 8, 128),
    "vicuna-7b": _sized(_LLAMA_2, 4_096, 11_008, 32, 32, 32, 128),
    "mistral-7b": _sized(_MISTRAL, 4_096, 14_336, 32, 32, 8, 128),
    "opt-125m": _sized(_OPT, 768, 3_072, 12, 12, 12, 64),
    "opt-1.3b": _sized(_OPT, 2_048, 8_192, 24, 32, 32, 64),
    "roberta-base": _sized(_ROBERTA, 768, 3_072, 12, 12, 12, 64),
    "roberta-large": _sized(_ROBERTA, 1_024, 4_096, 24, 16, 16, 64),
    "gemma3-1b": _sized(
        _GEMMA3, 1_152, 6_912, 26, 4, 1, 256, vocab_size=262_144, sliding_window=512, max_position_embeddings=32_768
    ),
    "gemma3-4b": _sized(
        _GEMMA3, 2_560, 10_240, 34, 8, 4, 256, sliding_window=1_024, rope_scaling={"rope_type": "linear", "factor": 8.0}
    ),
    "tiny": _sized(_TINY, 192, 512, 6, 3, 1, 64),
}


def preset(name: str) -> ModelConfig:
    """Return the preset called ``name`` (case does not matter).

    Raises:
        InputError: No such preset; the message lists them.
    """
    try:
        return PRESETS[name.lower()]
    except KeyError:
        raise InputError(f"no model called {name!r}; presets: {', '.join(PRESETS)}") from None
