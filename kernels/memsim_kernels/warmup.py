"""The list of all kernels, and one small call of each, so that a capped process compiles nothing later."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray

import memsim_kernels as kernels

Array = TypeVar("Array", bound=NDArray[Any])

KERNELS: tuple[Callable[..., None], ...] = tuple(getattr(kernels, name) for name in kernels.__all__)


def warm_up() -> None:
    """Call every kernel once on tiny arrays of the production types, after which threads and code are in memory."""
    tokens, size, rank, group_size = 3, 32, 2, 32
    n_heads, n_kv_heads, vocabulary = 4, 2, 48
    bias, weight = _frozen(np.zeros(size, np.float32)), _frozen(np.ones(size, np.float32))
    q = _frozen(np.zeros((vocabulary // 16, size // 8, 16), np.uint32))
    scales = _frozen(np.ones((size // group_size, vocabulary), np.float16))
    ids = _frozen(np.zeros(tokens, np.uint32))
    x, y, dy, gate = (np.ones((tokens, size), np.float32) for _ in range(4))
    w = np.empty((size, size), np.float32)

    kernels.embedding_q4_forward(x, ids, q, scales, group_size, 1.0)
    kernels.unpack_q4(w, q, scales, group_size)
    kernels.linear_forward(y, x, w, bias)
    kernels.linear_backward_input(x, y, w, False)
    kernels.linear_q4_forward(y, x, q[:2], np.ascontiguousarray(scales[:, :size]), bias, group_size)
    kernels.linear_q4_backward_input(x, y, q[:2], np.ascontiguousarray(scales[:, :size]), group_size, True)
    kernels.add(y, x, dy)
    kernels.copy(y, x)
    kernels.swiglu_forward(y, gate, dy)
    kernels.swiglu_backward(gate, dy, y, gate, dy)
    kernels.geglu_forward(y, gate, dy)
    kernels.geglu_backward(gate, dy, y, gate, dy)
    rstd = np.empty(tokens, np.float32)
    kernels.rmsnorm_forward(y, rstd, x, weight, 1e-6)
    kernels.rmsnorm_backward_input(x, dy, y, rstd, weight, True)
    mean = np.empty(tokens, np.float32)
    kernels.layernorm_forward(y, mean, rstd, x, weight, bias, 1e-6)
    kernels.layernorm_backward_input(x, dy, y, mean, rstd, weight, True)
    kernels.norm_backward_weight(np.empty(size, np.float32), dy, x, mean, rstd, False)
    kernels.sum_rows(np.empty(size, np.float32), dy, False)
    kernels.gelu_forward(y, x)
    kernels.gelu_backward(dy, dy, x)
    kernels.relu_forward(y, x)
    kernels.relu_backward(dy, dy, x)
    _warm_up_lora(tokens, size, rank)
    _warm_up_attention(tokens, n_heads, n_kv_heads, size // n_heads)
    _warm_up_loss(tokens, vocabulary, ids, q, scales)
    _warm_up_optimizers(size)


def warm_up_bf16() -> None:
    """Call every bf16 kernel once. Needs ``cpu.HAS_AVX512_BF16``."""
    from memsim_kernels.attention_bf16 import attention_backward_bf16, attention_forward_bf16
    from memsim_kernels.head_bf16 import head_q4_bf16
    from memsim_kernels.q4_bf16 import linear_q4_backward_input_bf16, linear_q4_forward_bf16

    tokens, size, group_size = 3, 32, 32
    q = _frozen(np.zeros((size // 16, size // 8, 16), np.uint32))
    scales = _frozen(np.ones((size // group_size, size), np.float16))
    x, y, dx = (np.ones((tokens, size), np.float32) for _ in range(3))
    work = np.empty((1 + get_num_threads()) << 17, np.float32)  # more than such small products ask for
    linear_q4_forward_bf16(y, x, q, scales, _frozen(np.zeros(size, np.float32)), group_size, work)
    linear_q4_backward_input_bf16(x, y, q, scales, group_size, True, work)
    stats, labels = np.empty(3, np.float64), _frozen(np.zeros(tokens, np.uint32))
    head_q4_bf16(stats, dx, x, labels, q, scales, size, group_size, 1.0, work)
    lse, delta, dk, dv = (np.empty((1, tokens), np.float32), np.empty((1, tokens), np.float32), *np.empty_like([x, x]))
    attention_forward_bf16(y, lse, x, x, x, 1, 1, 0.5, 0, True)
    attention_backward_bf16(dx, dk, dv, delta, x, x, x, x, y, lse, 1, 1, 0.5, 0, True)


def _warm_up_lora(tokens: int, size: int, rank: int) -> None:
    x, dy = (np.ones((tokens, size), np.float32) for _ in range(2))
    a, b = np.ones((rank, size), np.float32), np.ones((size, rank), np.float32)
    work = np.empty((2, tokens, rank), np.float32)
    kernels.lora_backward(np.empty_like(a), np.empty_like(b), work, dy, x, a, b, 2.0, False)
    kernels.linear_backward_weight(np.empty((size, size), np.float32), dy, x, False)


def _warm_up_attention(tokens: int, n_heads: int, n_kv_heads: int, head_dim: int) -> None:
    q, o, do, dq = (np.ones((tokens, n_heads * head_dim), np.float32) for _ in range(4))
    k, v, dk, dv = (np.ones((tokens, n_kv_heads * head_dim), np.float32) for _ in range(4))
    lse, delta = np.empty((n_heads, tokens), np.float32), np.empty((n_heads, tokens), np.float32)
    cos, sin = (_frozen(np.ones((tokens, head_dim // 2), np.float32)) for _ in range(2))
    kernels.rope_forward(q, q, cos, sin, n_heads)
    kernels.rope_backward(k, k, cos, sin, n_kv_heads)
    kernels.attention_forward(o, lse, q, k, v, n_heads, n_kv_heads, 0.5, 0, True)
    kernels.attention_backward(dq, dk, dv, delta, do, q, k, v, o, lse, n_heads, n_kv_heads, 0.5, 0, True)


def _warm_up_loss(
    tokens: int, vocabulary: int, labels: NDArray[np.uint32], q: NDArray[np.uint32], scales: NDArray[np.float16]
) -> None:
    logits = np.zeros((tokens, vocabulary), np.float32)
    stats, lse = np.empty(3, np.float64), np.empty(tokens, np.float32)
    kernels.cross_entropy_forward(stats, lse, logits, labels)
    kernels.cross_entropy_backward(logits, logits, labels, lse, stats, 1.0)
    x, dx = np.ones((tokens, 32), np.float32), np.empty((tokens, 32), np.float32)
    work = np.empty((1 + get_num_threads()) << 15, np.float32)  # more than such a small head asks for
    kernels.head_q4(stats, dx, x, labels, q, scales, vocabulary, 32, 1.0, work)


def _warm_up_optimizers(size: int) -> None:
    p, m, v, g = (np.ones(size, np.float32) for _ in range(4))
    kernels.add_noise(g, 0.1, 0, 1, 0, 0, False)
    kernels.keep_some(g, 1, 0.5, 0, 1, 0)
    kernels.sgd_update(p, g, 0.1, 0.0)
    kernels.momentum_update(p, m, g, 0.1, 0.9, 0.0)
    kernels.adamw_update(p, m, v, g, 0.1, 0.9, 0.999, 1e-8, 0.01, 1)


def _frozen(array: Array) -> Array:
    """Return ``array`` read-only, as a mapped file is."""
    array.flags.writeable = False
    return array
