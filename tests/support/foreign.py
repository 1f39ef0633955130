"""Small checkpoints as other people write them, whose weights lie on the INT4 grid, so that packing loses nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

C, H, LAYERS, HEADS, KV_HEADS, D, V = 64, 128, 2, 4, 2, 16, 320
CLASSES = {
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
}  # fmt: skip
LEFT_OUT = object()
Tensors = dict[str, np.ndarray]


def on_grid(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return levels -7...7 of one scale, with a 7 in every group of 32."""
    levels = rng.integers(-7, 8, (rows, columns)).astype(np.float32)
    levels[:, ::32] = 7
    return levels * np.float32(2.0**-6)


def tensors(kind: str, tied: bool = True, seed: int = 0) -> Tensors:
    """Return a model's tensors by Hugging Face's names, written down independently of memsim."""
    rng = np.random.default_rng(seed)
    found = {"model.embed_tokens.weight": on_grid(rng, V, C), "model.norm.weight": ones(rng, C)}
    if not tied:
        found["lm_head.weight"] = on_grid(rng, V, C)
    shapes = {
        "self_attn.q_proj": (HEADS * D, C), "self_attn.k_proj": (KV_HEADS * D, C),
        "self_attn.v_proj": (KV_HEADS * D, C), "self_attn.o_proj": (C, HEADS * D),
        "mlp.gate_proj": (H, C), "mlp.up_proj": (H, C), "mlp.down_proj": (C, H),
    }  # fmt: skip
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if kind == "gemma3_text" else []
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        found |= {f"{at}{name}.weight": on_grid(rng, *shape) for name, shape in shapes.items()}
        found |= {f"{at}{name}.weight": ones(rng, C) for name in norms}
        if kind == "qwen2":
            for name in list(shapes)[:3]:
                found[f"{at}{name}.bias"] = (rng.standard_normal(shapes[name][0]) * 0.02).astype(np.float32)
        if kind in ("qwen3", "gemma3_text"):
            found |= {f"{at}self_attn.{name}_norm.weight": ones(rng, D) for name in "qk"}
    return found


def ones(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return the weights of a norm, none of them exactly 1."""
    return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)


def config(kind: str, tied: bool = True, **changes: Any) -> dict[str, Any]:
    """Return ``config.json``; a change to LEFT_OUT takes a field out."""
    data: dict[str, Any] = {
        "architectures": [CLASSES[kind]], "model_type": kind, "vocab_size": V, "hidden_size": C, "intermediate_size": H,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": D,
        "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "max_position_embeddings": 512, "tie_word_embeddings": tied,
        "eos_token_id": 2, "bos_token_id": 1,
    }  # fmt: skip
    activation = {"hidden_activation": "gelu_pytorch_tanh"} if kind == "gemma3_text" else {"hidden_act": "silu"}
    return {key: value for key, value in (data | activation | changes).items() if value is not LEFT_OUT}


def write(
    directory: Path, kind: str = "qwen2", tied: bool = True, found: Tensors | None = None, **changes: Any
) -> Path:
    """Write a directory as ``save_pretrained`` does, in one file, without a tokenizer."""
    directory.mkdir(parents=True)
    save_file(tensors(kind, tied) if found is None else found, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config(kind, tied, **changes), indent=1))
    return directory
