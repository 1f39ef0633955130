"""A Hugging Face ``config.json`` from the metadata of a GGUF file.

Keys are those of gguf's ``constants.Keys``, defaults those of llama.cpp's ``llama-model.cpp``. Values are not checked
here: ``config_from_dict`` checks what it is given, wherever it comes from.
"""

from collections.abc import Mapping
from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.weights.readers.gguf_file import Value

# llama.cpp's architecture -> Hugging Face's model_type; Mistral's files call themselves llama.
MODEL_TYPES = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "gemma3": "gemma3_text"}

_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
}
_GEMMA_LOCAL_BASE, _GEMMA_PATTERN, _GEMMA_27B_LAYERS = 10_000.0, 6, 62
# Llama 3.1, 3.2 and 3.3 differ in the factor only; the file holds what it does to each frequency.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def hugging_face_config(
    metadata: Mapping[str, Value], vocab_size: int, rope_factors: NDArray[np.float32] | None, where: str
) -> dict[str, Any]:
    """Return what ``config.json`` would hold, except for what shows in the names of the tensors only.

    Args:
        metadata: Of the file.
        vocab_size: Rows of the embedding.
        rope_factors: What each of RoPE's frequencies is divided by, if the file says so, [D/2].
        where: What the error messages call the file.

    Raises:
        InputError: An architecture, or a feature, that is not modelled.
    """
    arch = metadata.get("general.architecture")
    if arch not in MODEL_TYPES:
        raise InputError(f"{where}: architecture {shown(arch)} is not supported; memsim reads {', '.join(MODEL_TYPES)}")
    config: dict[str, Any] = {name: metadata.get(f"{arch}.{key}") for name, key in _FIELDS.items()}
    config = {name: value for name, value in config.items() if value is not None}
    config |= {"model_type": MODEL_TYPES[str(arch)], "vocab_size": vocab_size}
    config.setdefault("rope_theta", 10_000.0)
    _check_rotary(metadata, str(arch), config, where)
    if arch == "llama" and "sliding_window" in config:
        config["model_type"] = "mistral"
    if arch in ("qwen2", "qwen3"):
        config.pop("sliding_window", None)  # written, but not used by any published model
    scaling = _scaling(metadata, str(arch), where)
    if rope_factors is not None:
        scaling = _llama3_scaling(rope_factors, config["rope_theta"], where)
    if scaling:
        config["rope_scaling"] = scaling
    return config | _gemma(metadata, config, where) if arch == "gemma3" else config


def _check_rotary(metadata: Mapping[str, Value], arch: str, config: Mapping[str, Any], where: str) -> None:
    """Refuse heads of which RoPE turns only a part, or whose values are of another length."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim")
    if head_dim is None and isinstance(heads, int) and isinstance(width, int) and heads:
        head_dim = width // heads
    for key in (f"{arch}.rope.dimension_count", f"{arch}.attention.value_length"):
        if metadata.get(key, head_dim) != head_dim:
            raise InputError(f"{where}: {key} {shown(metadata[key])} differs from the head's {head_dim}")


def _scaling(metadata: Mapping[str, Value], arch: str, where: str) -> dict[str, Any] | None:
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise InputError(f"{where}: RoPE scaling {shown(kind)} is not supported")
    return {"rope_type": "linear", "factor": metadata.get(f"{arch}.rope.scaling.factor")}


def _llama3_scaling(factors: NDArray[np.float32], base: object, where: str) -> dict[str, Any]:
    """Return Llama 3's scaling from what it does to each frequency.

    Raises:
        InputError: The factors are of no Llama 3.
    """
    factor = float(factors.max(initial=1.0))
    if (
        not isinstance(base, int | float)
        or not base > 0
        or not np.allclose(factors, _llama3_factors(factor, base, len(factors)), rtol=1e-4, atol=0)
    ):
        raise InputError(
            f"{where}: the factors in rope_freqs.weight are not those of Llama 3.x; they are not supported"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _llama3_factors(factor: float, base: float, n_frequencies: int) -> NDArray[np.float64]:
    """Return what Llama 3 divides each frequency by: 1 for short waves, ``factor`` for long ones, between, a mix."""
    frequencies = float(base) ** -(np.arange(n_frequencies) / n_frequencies)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * pi)
    mix = np.clip((turns - low) / (high - low), 0, 1)
    mixed: NDArray[np.float64] = 1 / ((1 - mix) / factor + mix)
    return mixed


def _gemma(metadata: Mapping[str, Value], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what Gemma 3 adds."""
    layers, heads, head_dim = (config.get(key) for key in ("num_hidden_layers", "num_attention_heads", "head_dim"))
    scalar = head_dim
    if layers == _GEMMA_27B_LAYERS and isinstance(heads, int) and heads > 0:
        scalar = config["hidden_size"] // heads
    pattern = metadata.get("gemma3.attention.sliding_window_pattern", _GEMMA_PATTERN)
    if isinstance(pattern, tuple):  # whether each layer is local
        period = pattern.index(False) + 1 if False in pattern else 0
        if not period or pattern != tuple((layer + 1) % period != 0 for layer in range(len(pattern))):
            raise InputError(f"{where}: its layers are not local and global in turns")
        pattern = period
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "rope_local_base_freq": metadata.get("gemma3.rope.freq_base_swa", _GEMMA_LOCAL_BASE),
        "sliding_window_pattern": pattern,
    }
