"""Numba kernels of a fine-tuning step, forward and backward, on float32 and packed INT4.

Importing the package compiles every kernel (half a minute) or loads it from Numba's cache (under a second). A call with
other types is a TypeError, never another compilation.

Every array is C-contiguous, and float32 [T, features] unless its kernel says otherwise. Written arguments come first;
all others may be read-only. Any T >= 1. Bits do not depend on the number of threads, on the other rows, on how a
product is cut into tiles, or on addresses.
"""

from memsim_kernels.activation import geglu_backward, geglu_forward, swiglu_backward, swiglu_forward
from memsim_kernels.attention import attention_backward, attention_forward
from memsim_kernels.elementwise import add, copy
from memsim_kernels.gelu import gelu_backward, gelu_forward
from memsim_kernels.head_f32 import head_q4
from memsim_kernels.layer_norm import layernorm_backward_input, layernorm_forward
from memsim_kernels.linear import (
    linear_backward_input,
    linear_forward,
    linear_q4_backward_input,
    linear_q4_forward,
)
from memsim_kernels.lora import linear_backward_weight, lora_backward
from memsim_kernels.loss import cross_entropy_backward, cross_entropy_forward
from memsim_kernels.noise import add_noise, keep_some
from memsim_kernels.norm import rmsnorm_backward_input, rmsnorm_forward
from memsim_kernels.optimizer import adamw_update, momentum_update, sgd_update
from memsim_kernels.quant import embedding_q4_forward, unpack_q4
from memsim_kernels.relu import relu_backward, relu_forward
from memsim_kernels.rope import rope_backward, rope_forward
from memsim_kernels.vector_gradients import norm_backward_weight, sum_rows

__all__ = [
    "adamw_update",
    "add",
    "add_noise",
    "attention_backward",
    "attention_forward",
    "copy",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "embedding_q4_forward",
    "geglu_backward",
    "geglu_forward",
    "gelu_backward",
    "gelu_forward",
    "head_q4",
    "keep_some",
    "layernorm_backward_input",
    "layernorm_forward",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "linear_q4_backward_input",
    "linear_q4_forward",
    "lora_backward",
    "momentum_update",
    "norm_backward_weight",
    "relu_backward",
    "relu_forward",
    "rmsnorm_backward_input",
    "rmsnorm_forward",
    "rope_backward",
    "rope_forward",
    "sgd_update",
    "sum_rows",
    "swiglu_backward",
    "swiglu_forward",
    "unpack_q4",
]
