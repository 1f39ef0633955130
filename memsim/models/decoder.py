"""The decoder as block programs: embedding, transformer block, head.

Every block of a model is the same program; ``x`` comes first among its inputs, weights, adapters and constants after
it, under the names that ``parts`` and ``lora`` give them.
"""

import math

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


class _Block:
    """A builder with the inputs of one segment of a block: ``x``, then weights, adapters and constants."""

    def __init__(
        self, config: ModelConfig, lora: LoraConfig, n_tokens: int, group_size: int, x: str, scopes: tuple[str, ...]
    ) -> None:
        self.config, self.lora, self.group_size = config, lora, group_size
        self.builder = Builder()
        self.builder.input(x, TensorType((n_tokens, config.hidden_size)))
        for name, spec in part_tensors(config, block_part(0), group_size).items():
            if name.startswith(scopes):
                kind = TensorType(spec.shape, spec.dtype)
                self.builder.input(name, kind, Space.MAPPED, f"{block_part(0)}/{name}")
        for name, shape in adapter_shapes(config, lora).items():
            if name.startswith(scopes):
                self.builder.input(name, TensorType(shape), Space.PINNED)

    def project(self, x: str, name: str, out: str) -> str:
        """Emit the projection ``name`` of ``x``, with its adapter if it has one; return ``out``."""
        attrs = _matrix_attrs(self.config.projections()[name], self.group_size)
        bias = [f"{name}.bias"] if self.config.has_bias(name) else []
        base = f"{out}.base" if self.lora.targets(name) else out
        self.builder.emit("linear_q4", [x, f"{name}.q", f"{name}.scales", *bias], [base], **attrs)
        if self.lora.targets(name):
            self.builder.emit("lora_a", [x, f"{name}.lora_A"], [f"{out}.h"])
            self.builder.emit("lora_b", [base, f"{out}.h", f"{name}.lora_B"], [out], scale=self.lora.scale)
        return out

    def norm(self, x: str, weight: str, out: str) -> str:
        """Emit an RMSNorm; return ``out``."""
        self.builder.emit("rmsnorm", [x, weight], [out, f"{out}.rstd"], eps=self.config.rms_norm_eps)
        return out


def attention_program(config: ModelConfig, lora: LoraConfig, n_tokens: int, group_size: int) -> Program:
    """Return x_mid [T, C] = x + attention(norm(x)), from x [T, C]."""
    block = _Block(config, lora, n_tokens, group_size, "x", ("self_attn.", "input_layernorm."))
    builder = block.builder
    for name in CONSTANTS:
        builder.input(name, TensorType((n_tokens, config.head_dim // 2)), Space.PINNED, name)

    def rope(x: str, n_heads: int) -> str:
        builder.emit("rope", [x, *CONSTANTS], [f"{x}.rope"], n_heads=n_heads)
        return f"{x}.rope"

    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    norm = block.norm("x", "input_layernorm.weight", "attn_norm")
    q = rope(block.project(norm, "self_attn.q_proj", "q"), heads)
    k = rope(block.project(norm, "self_attn.k_proj", "k"), kv_heads)
    v = block.project(norm, "self_attn.v_proj", "v")
    seen: dict[str, Attr] = {"scale": 1.0 / math.sqrt(config.head_dim), "window": 0, "causal": True}
    builder.emit("attention", [q, k, v], ["attn", "attn.lse"], n_heads=heads, n_kv_heads=kv_heads, **seen)
    builder.emit("add", ["x", block.project("attn", "self_attn.o_proj", "o")], ["x_mid"])
    return builder.build(["x_mid"])


def mlp_program(config: ModelConfig, lora: LoraConfig, n_tokens: int, group_size: int) -> Program:
    """Return y [T, C] = x_mid + SwiGLU(norm(x_mid)), from x_mid [T, C]; every token by itself."""
    block = _Block(config, lora, n_tokens, group_size, "x_mid", ("mlp.", "post_attention_layernorm."))
    norm = block.norm("x_mid", "post_attention_layernorm.weight", "mlp_norm")
    gate = block.project(norm, "mlp.gate_proj", "gate")
    up = block.project(norm, "mlp.up_proj", "up")
    block.builder.emit("swiglu", [gate, up], ["swiglu"])
    block.builder.emit("add", ["x_mid", block.project("swiglu", "mlp.down_proj", "down")], ["y"])
    return block.builder.build(["y"])


def head_program(
    config: ModelConfig, n_tokens: int, group_size: int, scale: float, one_pass: bool, train: bool, threads: int
) -> Program:
    """Return stats (loss, accuracy, count) from x [T, C] and labels [T]; ``scale`` weighs the loss's gradient.

    In one pass the vocabulary is streamed once for the loss and, in training, the gradient of the normed x.
    """
    builder = Builder()
    builder.input("x", TensorType((n_tokens, config.hidden_size)))
    builder.input("labels", TensorType((n_tokens,), "u32"))
    for part in dict.fromkeys(("head", head_matrix(config)[0])):
        _part_inputs(builder, config, part, group_size)
    matrix = head_matrix(config)[1]
    builder.emit("rmsnorm", ["x", "norm.weight"], ["norm", "norm.rstd"], eps=config.rms_norm_eps)
    attrs = _matrix_attrs((config.vocab_size, config.hidden_size), group_size)
    packed = [f"{matrix}.q", f"{matrix}.scales"]
    if one_pass:
        outputs = ["stats", "work", *(["norm.grad"] if train else [])]
        attrs |= {"scale": scale, "gradient": train, "threads": threads}
        inputs = ["norm", "labels", *packed]
        builder.emit("linear_cross_entropy_q4", inputs, outputs, **attrs)
    else:
        builder.emit("linear_q4", ["norm", *packed], ["logits"], **attrs)
        builder.emit("cross_entropy", ["logits", "labels"], ["stats", "lse"], scale=scale)
    return builder.build(["stats"])
