"""Toy models and Hugging Face directories that the tests of this folder share."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from memsim.models.config import ModelConfig

# Rows (77 tokens, 8 kv rows) and columns (40, 72) that fill neither a panel of 16 nor a group of 32 or 64.
TOY = ModelConfig(
    model_type="qwen2",
    vocab_size=77,
    hidden_size=40,
    intermediate_size=72,
    num_hidden_layers=2,
    num_attention_heads=5,
    num_key_value_heads=1,
    head_dim=8,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    attention_bias=True,
)
UNTIED = replace(TOY, tie_word_embeddings=False)


def silent(label: str, done_bytes: int, total_bytes: int) -> None:
    """A progress callback that says nothing."""


def source_tensors(config: ModelConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random weights under Hugging Face's names, written down independently of ``memsim.models.parts``."""
    rng = np.random.default_rng(seed)
    c, h = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, c),
        "model.norm.weight": (c,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, c)
    for layer in range(config.num_hidden_layers):
        block: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (q, c),
            "self_attn.k_proj.weight": (kv, c),
            "self_attn.v_proj.weight": (kv, c),
            "self_attn.o_proj.weight": (c, q),
            "self_attn.q_proj.bias": (q,),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.bias": (kv,),
            "mlp.gate_proj.weight": (h, c),
            "mlp.up_proj.weight": (h, c),
            "mlp.down_proj.weight": (c, h),
            "input_layernorm.weight": (c,),
            "post_attention_layernorm.weight": (c,),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_config(directory: Path, config: ModelConfig, **changes: Any) -> None:
    """Write ``config.json``; a change to None removes the field."""
    data = config.to_dict() | {"hidden_act": "silu", "eos_token_id": 3} | changes
    (directory / "config.json").write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def write_checkpoint(
    directory: Path, config: ModelConfig, tensors: dict[str, NDArray[Any]] | None = None, shards: int = 1
) -> Path:
    """Write a Hugging Face directory, in one file or ``shards``."""
    directory.mkdir(parents=True, exist_ok=True)
    write_config(directory, config)
    tensors = source_tensors(config) if tensors is None else tensors
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map = {}
    for index in range(shards):
        name = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        shard = dict(list(tensors.items())[index::shards])
        save_file(shard, directory / name)
        weight_map |= dict.fromkeys(shard, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def naive_dequantized(weights: NDArray[np.float32], group_size: int) -> NDArray[np.float64]:
    """Quantise and dequantise a matrix slowly and obviously, in float64."""
    stored = np.zeros(weights.shape)
    for row in range(weights.shape[0]):
        for first in range(0, weights.shape[1], group_size):
            group = weights[row, first : first + group_size].astype(np.float64)
            largest = group[np.abs(group).argmax()]
            for scale in (abs(largest) / 7, largest / -8):  # the first only where it is exact
                step = float(np.float16(scale))
                found = np.clip(np.round(group / step), -8, 7) * step if step else np.zeros(len(group))
                if (found == group).all():
                    break
            stored[row, first : first + group_size] = found
    return stored
