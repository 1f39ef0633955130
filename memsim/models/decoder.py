"""The decoder as block programs: embedding, transformer block, head.

Every block of a model is the same program; ``x`` comes first among its inputs, weights, adapters and constants after
it, under the names that ``parts`` and ``lora`` give them.
"""

import numpy as np
from numpy.typing import NDArray

from memsim.ir.builder import Builder
from memsim.ir.program import Attr, Program, Space, TensorType
from memsim.models.config import ModelConfig
from memsim.models.lora import LoraConfig, adapter_shapes
from memsim.models.parts import block_part, head_matrix, part_tensors

CONSTANTS = ("rope.cos", "rope.sin")


def rope_tables(config: ModelConfig, n_tokens: int) -> dict[str, NDArray[np.float32]]:
    """Return cos and sin [T, D/2] of position times inverse frequency, in f32 as transformers computes them."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    inverse = np.float32(1) / np.power(np.float32(config.rope_theta), exponents)
    angles = np.arange(n_tokens, dtype=np.float32)[:, None] * inverse[None, :]
    return {"rope.cos": np.cos(angles), "rope.sin": np.sin(angles)}


def _part_inputs(builder: Builder, config: ModelConfig, part: str, group_size: int) -> None:
    for name, spec in part_tensors(config, part, group_size).items():
        builder.input(name, TensorType(spec.shape, spec.dtype), Space.MAPPED, f"{part}/{name}")


def _matrix_attrs(shape: tuple[int, int], group_size: int) -> dict[str, Attr]:
    return {"n_rows": shape[0], "n_columns": shape[1], "group_size": group_size}


def embed_program(config: ModelConfig, n_tokens: int, group_size: int) -> Program:
    """Return x [T, C] from ids [T]."""
    builder = Builder()
    builder.input("ids", TensorType((n_tokens,), "u32"))
    _part_inputs(builder, config, "embed", group_size)
    attrs = _matrix_attrs((config.vocab_size, config.hidden_size), group_size)
    builder.emit("embedding_q4", ["ids", "embed_tokens.q", "embed_tokens.scales"], ["y"], **attrs)
    return builder.build(["y"])


def block_program(config: ModelConfig, lora: LoraConfig, n_tokens: int, group_size: int) -> Program:
    """Return y [T, C] from x [T, C]: pre-norm attention and SwiGLU, LoRA on the targeted projections."""
    builder = Builder()
    builder.input("x", TensorType((n_tokens, config.hidden_size)))
    _part_inputs(builder, config, block_part(0), group_size)
    for name, shape in adapter_shapes(config, lora).items():
        builder.input(name, TensorType(shape), Space.PINNED)
    for name in CONSTANTS:
        builder.input(name, TensorType((n_tokens, config.head_dim // 2)), Space.PINNED, name)

    def project(x: str, name: str, out: str) -> str:
        attrs = _matrix_attrs(config.projections()[name], group_size)
        bias = [f"{name}.bias"] if config.has_bias(name) else []
        base = f"{out}.base" if lora.targets(name) else out
        builder.emit("linear_q4", [x, f"{name}.q", f"{name}.scales", *bias], [base], **attrs)
        if lora.targets(name):
            builder.emit("lora_a", [x, f"{name}.lora_A"], [f"{out}.h"])
            builder.emit("lora_b", [base, f"{out}.h", f"{name}.lora_B"], [out], scale=lora.scale)
        return out

    def rope(x: str, n_heads: int) -> str:
        builder.emit("rope", [x, *CONSTANTS], [f"{x}.rope"], n_heads=n_heads)
        return f"{x}.rope"

    heads, kv_heads, eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
    builder.emit("rmsnorm", ["x", "input_layernorm.weight"], ["attn_norm", "attn_norm.rstd"], eps=eps)
    q = rope(project("attn_norm", "self_attn.q_proj", "q"), heads)
    k = rope(project("attn_norm", "self_attn.k_proj", "k"), kv_heads)
    v = project("attn_norm", "self_attn.v_proj", "v")
    builder.emit("attention", [q, k, v], ["attn", "attn.lse"], n_heads=heads, n_kv_heads=kv_heads)
    builder.emit("add", ["x", project("attn", "self_attn.o_proj", "o")], ["x_mid"])
    builder.emit("rmsnorm", ["x_mid", "post_attention_layernorm.weight"], ["mlp_norm", "mlp_norm.rstd"], eps=eps)
    gate = project("mlp_norm", "mlp.gate_proj", "gate")
    up = project("mlp_norm", "mlp.up_proj", "up")
    builder.emit("swiglu", [gate, up], ["swiglu"])
    builder.emit("add", ["x_mid", project("swiglu", "mlp.down_proj", "down")], ["y"])
    return builder.build(["y"])


def head_program(config: ModelConfig, n_tokens: int, group_size: int, scale: float) -> Program:
    """Return stats (loss, accuracy, count) from x [T, C] and labels [T]; ``scale`` weighs the loss's gradient."""
    builder = Builder()
    builder.input("x", TensorType((n_tokens, config.hidden_size)))
    builder.input("labels", TensorType((n_tokens,), "u32"))
    for part in dict.fromkeys(("head", head_matrix(config)[0])):
        _part_inputs(builder, config, part, group_size)
    matrix = head_matrix(config)[1]
    builder.emit("rmsnorm", ["x", "norm.weight"], ["norm", "norm.rstd"], eps=config.rms_norm_eps)
    attrs = _matrix_attrs((config.vocab_size, config.hidden_size), group_size)
    builder.emit("linear_q4", ["norm", f"{matrix}.q", f"{matrix}.scales"], ["logits"], **attrs)
    builder.emit("cross_entropy", ["logits", "labels"], ["stats", "lse"], scale=scale)
    return builder.build(["stats"])
