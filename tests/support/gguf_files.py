"""GGUF files for tests, written by the gguf library with llama.cpp's names, row order and conventions."""

from collections.abc import Callable, Mapping
from math import pi
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

ARCHITECTURES = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}


def llama_cpp_tensors(model_type: str, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return Hugging Face's tensors as llama.cpp's converter stores them, by llama.cpp's names."""
    arch = ARCHITECTURES[model_type]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    tensors = {}
    for name, values in state.items():
        if arch == gguf.MODEL_ARCH.LLAMA and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            pairs = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        if arch == gguf.MODEL_ARCH.GEMMA3 and name.endswith("norm.weight"):
            values = values + np.float32(1)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        tensors[stored] = np.ascontiguousarray(values, np.float32)
    return tensors


def llama3_factors(config: Mapping[str, Any]) -> np.ndarray:
    """Return what Llama 3 divides each frequency by, written down as its authors describe it."""
    scaling, factors = config["rope_scaling"], []
    for index in range(config["head_dim"] // 2):
        wavelength = 2 * pi * config["rope_theta"] ** (2 * index / config["head_dim"])
        ratio = scaling["original_max_position_embeddings"] / wavelength
        if ratio > scaling["high_freq_factor"]:
            factors.append(1.0)
        elif ratio < scaling["low_freq_factor"]:
            factors.append(scaling["factor"])
        else:
            smooth = (ratio - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def write_gguf(
    path: Path,
    model_type: str,
    config: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    kind_of: Callable[[str], Kind] = lambda name: Kind.F32,
    raw: Mapping[str, np.ndarray] | None = None,
    **extra: np.ndarray,
) -> Path:
    """Write a model; matrices have the type that ``kind_of`` gives llama.cpp's name, vectors are f32.

    ``raw`` holds Q6_K bytes for some of llama.cpp's names; ``extra`` further f32 tensors.
    """
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model_type]])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if model_type == "gemma3_text":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    scaling = config.get("rope_scaling") or {"rope_type": "none"}
    if scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif scaling["rope_type"] == "llama3":
        extra["rope_freqs.weight"] = llama3_factors(config)
    writer.add_eos_token_id(3)
    writer.add_token_list([f"token{index}" for index in range(len(state["model.embed_tokens.weight"]))])
    writer.add_string("tokenizer.chat_template", "x" * 100_000)  # longer than memsim keeps
    for name, values in llama_cpp_tensors(model_type, config, state).items():
        kind = kind_of(name) if values.ndim == 2 else Kind.F32
        if raw is not None and name in raw:
            writer.add_tensor(name, raw[name], raw_dtype=Kind.Q6_K)
        elif kind == Kind.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name, values in extra.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
