"""What ``bench kernels`` times: single nodes of a training step, in the shapes that a model gives them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memsim.ir.builder import Builder
from memsim.ir.program import Attr, Program, TensorType
from memsim.models.config import ModelConfig
from memsim.models.lora import LoraConfig, n_trainable
from memsim.models.parts import packed_matrix
from memsim.planner.work import Work, step_work

PRODUCTS = ("linear_q4", "linear_q4_backward_input")
HEAD = "linear_cross_entropy_q4"


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One row: an op on inputs of these types.

    Attributes:
        label: What people call it: ``gate/up``.
        model: Whose shapes these are.
        compute: The compute path: ``f32`` or ``bf16``.
        shape: For people: ``256 x 4864 x 896``.
    """

    op: str
    label: str
    model: str
    compute: str
    shape: str
    inputs: tuple[TensorType, ...]
    attrs: Mapping[str, Attr]

    def to_dict(self) -> dict[str, Any]:
        """Return what a contestant needs to know, as plain data for JSON."""
        inputs = [[list(kind.shape), kind.dtype] for kind in self.inputs]
        return {"op": self.op, "compute": self.compute, "inputs": inputs, "attrs": dict(self.attrs)}

    def work(self) -> Work:
        """Return floating-point operations and bytes of one call."""
        return step_work(one_node(self.op, self.inputs, self.attrs))


def one_node(op: str, inputs: Sequence[TensorType], attrs: Mapping[str, Attr]) -> Program:
    """Return the program of a single node."""
    builder = Builder()
    names = [builder.input(f"in{index}", kind) for index, kind in enumerate(inputs)]
    n_outputs = {"rmsnorm": 2, "attention": 2, "attention_backward": 4, "swiglu_backward": 2, "lora_backward": 3}
    count = {HEAD: 3 if attrs.get("gradient") else 2, "adamw": 2}.get(op, n_outputs.get(op, 1))
    return builder.build(builder.emit(op, names, [f"out{index}" for index in range(count)], **attrs))


def product_cases(model: str, config: ModelConfig, n_tokens: int, compute: str) -> Iterator[KernelCase]:
    """Yield the products of a block with packed weights, forward and backward-input."""
    c, h = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    for label, n, k in (("q, o", q, c), ("q+k+v", q + 2 * kv, c), ("gate, up", h, c), ("down", c, h)):
        for op, width in zip(PRODUCTS, (k, n), strict=True):
            x = TensorType((n_tokens, width))
            attrs = {"n_rows": n, "n_columns": k, "group_size": 32}
            yield KernelCase(op, label, model, compute, f"{n_tokens} x {n} x {k}", (x, *_packed(n, k)), attrs)


def head_case(model: str, config: ModelConfig, n_tokens: int, compute: str, threads: int) -> KernelCase:
    """Return the one-pass head with its gradient."""
    v, c = config.vocab_size, config.hidden_size
    attrs: dict[str, Attr] = {"n_rows": v, "n_columns": c, "group_size": 32}
    attrs |= {"scale": 1.0, "gradient": True, "threads": threads}
    inputs = (TensorType((n_tokens, c)), TensorType((n_tokens,), "u32"), *_packed(v, c))
    return KernelCase(HEAD, "one-pass head", model, compute, f"{n_tokens} x {v} x {c}", inputs, attrs)


def other_cases(model: str, config: ModelConfig, n_tokens: int) -> Iterator[KernelCase]:
    """Yield attention, LoRA, norm, RoPE, SwiGLU and the optimizer, which are f32 on every path."""
    c, h, heads, kv_heads = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    lora = LoraConfig()
    x, q, kv = (TensorType((n_tokens, width)) for width in (c, heads * config.head_dim, kv_heads * config.head_dim))
    wide = TensorType((n_tokens, h))
    a, b = TensorType((lora.rank, c)), TensorType((h, lora.rank))
    lse, angles = TensorType((heads, n_tokens)), TensorType((n_tokens, config.head_dim // 2))
    norm, rstd = TensorType((c,)), TensorType((n_tokens,))
    grouped: dict[str, Attr] = {"n_heads": heads, "n_kv_heads": kv_heads}
    grouped |= {"scale": config.head_dim**-0.5, "window": 0, "causal": True}
    parameters = TensorType((n_trainable(config, lora),))
    state, step = TensorType((2 * parameters.shape[0],)), TensorType((1,), "f64")
    adamw: dict[str, Attr] = {"n_tensors": 1, "lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    rows: list[tuple[str, str, tuple[TensorType, ...], dict[str, Attr]]] = [
        ("attention", "attention", (q, kv, kv), grouped),
        ("attention_backward", "attention", (q, q, kv, kv, q, lse), grouped),
        ("lora_backward", "LoRA, gate and up", (wide, x, a, b), {"lora_scale": lora.scale}),
        ("rmsnorm", "norm", (x, norm), {"eps": config.rms_norm_eps}),
        ("rmsnorm_backward_input", "norm", (x, x, rstd, norm), {}),
        ("rope", "RoPE of q", (q, angles, angles), {"n_heads": heads}),
        ("swiglu", "SwiGLU", (wide, wide), {}),
        ("swiglu_backward", "SwiGLU", (wide, wide, wide), {}),
        ("adamw", "all adapters", (step, parameters, parameters, state), adamw | {"weight_decay": 0.0}),
    ]
    for op, label, inputs, attrs in rows:
        first = max(inputs, key=lambda kind: kind.n_bytes)
        yield KernelCase(op, label, model, "f32", " x ".join(map(str, first.shape)), inputs, attrs)


def _packed(n_rows: int, n_columns: int) -> tuple[TensorType, ...]:
    specs = packed_matrix("w", n_rows, n_columns, 32).values()
    return tuple(TensorType(spec.shape, spec.dtype) for spec in specs)
