"""The op table of execution: op name -> a call of a kernel. In a run, the only importer of ``memsim_kernels``."""

import ctypes
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numba import get_num_threads, set_num_threads

import memsim_kernels as k
from memsim.errors import WorkerError
from memsim.runtime.bf16_ops import BF16_KERNELS
from memsim.runtime.data import IGNORED
from memsim.runtime.paging import Array
from memsim.runtime.tangent_ops import tangent_kernels
from memsim.runtime.zeroth_order_ops import ZEROTH_ORDER_KERNELS
from memsim_kernels import cpu, warmup
from memsim_kernels.lora import Adapter

Attrs = Mapping[str, Any]
Kernel = Callable[[Sequence[Array], Sequence[Array], Attrs], None]
"""Called as kernel(outputs, inputs, attrs)."""

_NO_BIAS = np.zeros(0, np.float32)
_NO_BIAS.flags.writeable = False  # the kernels are compiled for mapped, read-only biases


def _by_lane(a: Attrs, *arrays: Array) -> list[tuple[Array, ...]]:
    """Return, for each lane, its rows of ``arrays``."""
    lanes = a.get("lanes", 1)
    return list(zip(*(array.reshape(lanes, -1, array.shape[-1]) for array in arrays), strict=True))


def _start(out: Array, so_far: Sequence[Array]) -> bool:
    """Prepare an output that adds to an optional input; return whether there is one."""
    if so_far and so_far[0] is not out:
        np.copyto(out, so_far[0])
    return bool(so_far)


def _embedding_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.embedding_q4_forward(o[0], i[0], i[1], i[2], a["group_size"], a["scale"])


def _unpack_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.unpack_q4(o[0], i[0], i[1], a["group_size"])


def _forward_extras(o: Sequence[Array], rest: Sequence[Array], a: Attrs) -> tuple[Array, Adapter]:
    """Return bias and adapter of a product, from its inputs after the matrix."""
    if "lora_scale" not in a:
        return rest[0] if rest else _NO_BIAS, Adapter()
    bias = rest[0] if len(rest) > 2 else _NO_BIAS
    return bias, Adapter(rest[-2], rest[-1], a["lora_scale"], o[1], a.get("lanes", 1))


def _backward_extras(o: Sequence[Array], rest: Sequence[Array], a: Attrs) -> tuple[bool, Adapter]:
    """Return whether to add to the output, which is prepared for it, and the adapter."""
    if "lora_scale" not in a:
        return _start(o[0], rest), Adapter()
    return _start(o[0], rest[2:]), Adapter(rest[0], rest[1], a["lora_scale"], o[1])


def _linear(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.linear_forward(o[0], i[0], i[1], *_forward_extras(o, i[2:], a))


def _linear_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.linear_backward_input(o[0], i[0], i[1], *_backward_extras(o, i[2:], a))


def _linear_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    bias, adapter = _forward_extras(o, i[3:], a)
    k.linear_q4_forward(o[0], i[0], i[1], i[2], bias, a["group_size"], adapter)


def _linear_q4_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    accumulate, adapter = _backward_extras(o, i[3:], a)
    k.linear_q4_backward_input(o[0], i[0], i[1], i[2], a["group_size"], accumulate, adapter)


def _lora_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    accumulate = all([_start(out, so_far) for out, so_far in zip(o, (i[4:5], i[5:6]), strict=False)])
    k.lora_backward(o[0], o[1], o[2], i[0], i[1], i[2], i[3], a["lora_scale"], accumulate)


def _linear_backward_weight(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.linear_backward_weight(o[0], i[0], i[1], _start(o[0], i[2:]))


def _sum_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.sum_rows(o[0], i[0], _start(o[0], i[1:]))


def _rmsnorm(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    size = len(i[1])
    k.rmsnorm_forward(o[0].reshape(-1, size), o[1], i[0].reshape(-1, size), i[1], a["eps"])


def _rmsnorm_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    adding = _start(o[0], i[4:])
    dx, dy, x = (array.reshape(-1, len(i[3])) for array in (o[0], i[0], i[1]))
    k.rmsnorm_backward_input(dx, dy, x, i[2], i[3], adding)


def _rmsnorm_backward_weight(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    dy, x = (array.reshape(-1, len(i[3])) for array in i[:2])
    k.norm_backward_weight(o[0], dy, x, _NO_BIAS, i[2], _start(o[0], i[4:]))


def _layernorm(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.layernorm_forward(o[0], o[1], o[2], i[0], i[1], i[2], a["eps"])


def _layernorm_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.layernorm_backward_input(o[0], i[0], i[1], i[2], i[3], i[4], _start(o[0], i[5:]))


def _layernorm_backward_weight(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.norm_backward_weight(o[0], i[0], i[1], i[2], i[3], _start(o[0], i[4:]))


def _rope(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for y, x in _by_lane(a, o[0], i[0]):
        k.rope_forward(y, x, i[1], i[2], a["n_heads"])


def _rope_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.rope_backward(o[0], i[0], i[1], i[2], a["n_heads"])


def _seen(a: Attrs) -> tuple[int, int, float, int, bool]:
    return a["n_heads"], a["n_kv_heads"], a["scale"], a["window"], a["causal"]


def _by_head(array: Array, count: int) -> Array:
    """Return the front of a buffer [NH, T] as [NH, count]."""
    return array.reshape(-1)[: len(array) * count].reshape(-1, count)


def _attend(run: Callable[..., None], o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    """Let the tokens that are no padding attend to each other."""
    count = int(i[3][0]) if len(i) > 3 else len(i[0])
    run(o[0][:count], _by_head(o[1], count), *(x[:count] for x in i[:3]), *_seen(a))
    o[0][count:] = 0


def _attend_backward(run: Callable[..., None], o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    count = int(i[6][0]) if len(i) > 6 else len(i[0])
    gradients, tokens = (x[:count] for x in o[:3]), (x[:count] for x in i[:5])
    run(*gradients, _by_head(o[3], count), *tokens, _by_head(i[5], count), *_seen(a))
    for gradient in o[:3]:
        gradient[count:] = 0


def _attention(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for y, lse, q, keys, v in _by_lane(a, *o, *i[:3]):
        _attend(k.attention_forward, (y, lse), (q, keys, v, *i[3:]), a)


def _attention_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    _attend_backward(k.attention_backward, o, i, a)


def _swiglu(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.swiglu_forward(o[0], i[0], i[1])


def _swiglu_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.swiglu_backward(o[0], o[1], i[0], i[1], i[2])


def _geglu(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.geglu_forward(o[0], i[0], i[1])


def _geglu_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.geglu_backward(o[0], o[1], i[0], i[1], i[2])


def _relu(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.relu_forward(o[0], i[0])


def _relu_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.relu_backward(o[0], i[0], i[1])


def _gelu(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.gelu_forward(o[0], i[0])


def _gelu_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.gelu_backward(o[0], i[0], i[1])


def _tanh(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    np.tanh(i[0], out=o[0])  # of one token


def _tanh_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    np.multiply(i[0], 1 - i[1] * i[1], out=o[0])


def _add_row(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    np.add(i[0], i[1][a["row"]], out=o[0])


def _add_table_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for y, x in _by_lane(a, o[0], i[0]):
        k.add(y, x, i[1][a["start"] : a["start"] + len(x)])


def _add(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.add(o[0], i[0], i[1])


def _take_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for y, x, *rest in _by_lane(a, o[0], *i):
        rows = x[a["start"] : a["start"] + a["count"]]
        if rest:
            k.add(y, rows, rest[0])
        else:
            k.copy(y, rows)


def _place_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    end = a["start"] + len(i[0])
    o[0][: a["start"]].fill(0)
    k.copy(o[0][a["start"] : end], i[0])
    o[0][end:].fill(0)


def _take_labelled(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    """Copy the first row that has a label.

    Raises:
        WorkerError: None has one.
    """
    row = int(np.argmax(i[1] != IGNORED))
    if i[1][row] == IGNORED:
        raise WorkerError("a window without a label has nothing to classify")
    np.copyto(o[0], i[0][row : row + 1])
    o[1][0] = i[1][row]


def _put_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    _start(o[0], i[:1])
    for y, rows in _by_lane(a, o[0], i[1]):
        k.copy(y[a["start"] : a["start"] + len(rows)], rows)


def _repeat_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for (y,) in _by_lane(a, o[0]):
        k.copy(y, i[0])


def _concat_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    start = 0
    for rows in i:
        k.copy(o[0][start : start + len(rows)], rows)
        start += len(rows)


def _cross_entropy(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    lanes = a.get("lanes", 1)
    for stats, lse, logits in zip(*(x.reshape(lanes, -1, *x.shape[1:]) for x in (*o, i[0])), strict=True):
        k.cross_entropy_forward(stats, lse, logits, i[1])


def _cross_entropy_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.cross_entropy_backward(o[0], i[0], i[1], i[2], i[3], a["scale"])


def _head_outputs(o: Sequence[Array], labels: Array, a: Attrs) -> tuple[Array, Array | None, Array, Array]:
    """Return stats, dx if wanted, the workspace, which was planned for a number of threads, and every lane's labels.

    Raises:
        WorkerError: More threads are at work, which would write beyond it.
    """
    if get_num_threads() > a["threads"]:
        raise WorkerError(f"the step was planned for {a['threads']} threads, not {get_num_threads()}; plan it again")
    return o[0], o[2] if a["gradient"] else None, o[1], np.tile(labels, a["lanes"]) if "lanes" in a else labels


def _linear_cross_entropy_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    stats, dx, work, labels = _head_outputs(o, i[1], a)
    bias = i[4] if len(i) > 4 else _NO_BIAS
    k.head_q4(stats, dx, i[0], labels, i[2], i[3], a["n_rows"], a["group_size"], a["scale"], work, bias)


def _parameters(i: Sequence[Array], a: Attrs) -> list[tuple[Array, Array, slice]]:
    """Return (parameter, gradient, its slice of one state vector) for each tensor of an update, all flat."""
    n, start, rows = int(a["n_tensors"]), 0, []
    for parameter, gradient in zip(i[1 : n + 1], i[n + 1 : 2 * n + 1], strict=True):
        rows.append((parameter.reshape(-1), gradient.reshape(-1), slice(start, start + parameter.size)))
        start += parameter.size
    return rows


def _sgd(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for parameter, gradient, _ in _parameters(i, a):
        k.sgd_update(parameter, gradient, a["lr"], a["weight_decay"])


def _momentum(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for parameter, gradient, where in _parameters(i, a):
        k.momentum_update(parameter, i[-1][where], gradient, a["lr"], a["momentum"], a["weight_decay"])


def _adamw(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    first, second = i[-1].reshape(2, -1)
    step = int(i[0][0])
    settings = (a["lr"], a["beta1"], a["beta2"], a["eps"], a["weight_decay"])
    for parameter, gradient, where in _parameters(i, a):
        k.adamw_update(parameter, first[where], second[where], gradient, *settings, step)


KERNELS: dict[str, Kernel] = (
    {
        "embedding_q4": _embedding_q4,
        "unpack_q4": _unpack_q4,
        "linear": _linear,
        "linear_backward_input": _linear_backward_input,
        "linear_q4": _linear_q4,
        "linear_q4_backward_input": _linear_q4_backward_input,
        "lora_backward": _lora_backward,
        "linear_backward_weight": _linear_backward_weight,
        "sum_rows": _sum_rows,
        "rmsnorm": _rmsnorm,
        "rmsnorm_backward_input": _rmsnorm_backward_input,
        "rmsnorm_backward_weight": _rmsnorm_backward_weight,
        "layernorm": _layernorm,
        "layernorm_backward_input": _layernorm_backward_input,
        "layernorm_backward_weight": _layernorm_backward_weight,
        "rope": _rope,
        "rope_backward": _rope_backward,
        "attention": _attention,
        "attention_backward": _attention_backward,
        "swiglu": _swiglu,
        "swiglu_backward": _swiglu_backward,
        "geglu": _geglu,
        "geglu_backward": _geglu_backward,
        "relu": _relu,
        "relu_backward": _relu_backward,
        "gelu": _gelu,
        "gelu_backward": _gelu_backward,
        "tanh": _tanh,
        "tanh_backward": _tanh_backward,
        "add_row": _add_row,
        "add_table_rows": _add_table_rows,
        "add": _add,
        "take_rows": _take_rows,
        "put_rows": _put_rows,
        "repeat_rows": _repeat_rows,
        "place_rows": _place_rows,
        "concat_rows": _concat_rows,
        "take_labelled": _take_labelled,
        "linear_cross_entropy_q4": _linear_cross_entropy_q4,
        "cross_entropy": _cross_entropy,
        "cross_entropy_backward": _cross_entropy_backward,
        "sgd": _sgd,
        "momentum": _momentum,
        "adamw": _adamw,
    }
    | ZEROTH_ORDER_KERNELS
    | BF16_KERNELS
)
KERNELS |= tangent_kernels(_linear_q4, _linear_cross_entropy_q4)


def _fits_bf16(q: Array, a: Attrs) -> bool:
    """Return whether a head of q is a number of whole steps of 32."""
    return int(q.shape[1]) // int(a["n_heads"]) % 32 == 0


def _bf16_kernels(threads: int, rank: int) -> dict[str, Kernel]:
    """Return the ops whose products are in bf16, with f32 sums. Loads code that only some processors can run."""
    from memsim_kernels.attention_bf16 import attention_backward_bf16, attention_forward_bf16
    from memsim_kernels.head_bf16 import head_q4_bf16
    from memsim_kernels.q4_bf16 import (
        ROWS,
        STEPS,
        linear_q4_backward_input_bf16,
        linear_q4_forward_bf16,
        workspace_floats,
    )

    work = np.empty(workspace_floats(ROWS, 32 * STEPS, threads, rank), np.float32)
    work.fill(0)  # np.zeros would take its pages in the first step, and no baseline would hold them

    def fitting(adapter: Adapter) -> Adapter:
        if len(adapter.a) > rank:  # would write beyond the workspace
            raise WorkerError(f"the kernels were loaded for a LoRA rank of {rank}, not {len(adapter.a)}")
        return adapter

    def linear_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        bias, adapter = _forward_extras(o, i[3:], a)
        linear_q4_forward_bf16(o[0], i[0], i[1], i[2], bias, a["group_size"], work, fitting(adapter))

    def linear_q4_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        accumulate, adapter = _backward_extras(o, i[3:], a)
        linear_q4_backward_input_bf16(o[0], i[0], i[1], i[2], a["group_size"], accumulate, work, fitting(adapter))

    def linear_cross_entropy_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        stats, dx, head_work, labels = _head_outputs(o, i[1], a)
        head_q4_bf16(
            stats, dx, i[0], labels, i[2], i[3], a["n_rows"], a["group_size"], a["scale"], head_work,
            bias=i[4] if len(i) > 4 else _NO_BIAS,
        )  # fmt: skip

    def attention(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        run = attention_forward_bf16 if _fits_bf16(i[0], a) else k.attention_forward
        for y, lse, q, keys, v in _by_lane(a, *o, *i[:3]):
            _attend(run, (y, lse), (q, keys, v, *i[3:]), a)

    def attention_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        _attend_backward(attention_backward_bf16 if _fits_bf16(i[1], a) else k.attention_backward, o, i, a)

    return {
        "attention": attention,
        "attention_backward": attention_backward,
        "linear_q4": linear_q4,
        "linear_q4_backward_input": linear_q4_backward_input,
        "linear_cross_entropy_q4": linear_cross_entropy_q4,
    } | tangent_kernels(linear_q4, linear_cross_entropy_q4)


def load_kernels(compute: str, threads: int, rank: int = 32) -> dict[str, Kernel]:
    """Return the op table for a compute path, after running every kernel once on tiny inputs.

    Threads, code and constants are in memory then, before a step.

    Args:
        compute: ``f32``, or ``bf16`` for the products with packed weights and in attention where the processor can.
        threads: Threads that the kernels use from now on.
        rank: The largest LoRA rank that they will see; the bf16 workspace grows with every 32 of it.
    """
    set_num_threads(threads)
    warmup.warm_up()
    if compute == "f32":
        return KERNELS
    warmup.warm_up_bf16()
    return KERNELS | _bf16_kernels(threads, rank)


def finish_loading() -> None:
    """Give back to the system what loading needed, and spare the garbage collector what stays."""
    gc.collect()
    with suppress(OSError, AttributeError):  # GNU's C library only; elsewhere free() decides
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()


def compute_paths() -> tuple[str, ...]:
    """Return the compute paths that this processor has."""
    return ("f32", "bf16") if cpu.HAS_AVX512_BF16 else ("f32",)


def fastest_compute(threads: int) -> str:
    """Return the compute path that multiplies a packed matrix fastest here, by the best of a few calls."""
    size, attrs = 896, {"group_size": 32}
    q, scales = np.zeros((size // 16, size // 8, 16), np.uint32), np.ones((size // 32, size), np.float16)
    x, y = np.ones((256, size), np.float32), np.empty((256, size), np.float32)
    best: dict[str, float] = {}
    for compute in compute_paths():
        product = load_kernels(compute, threads)["linear_q4"]
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            product([y], [x, q, scales], attrs)
            seconds.append(time.perf_counter() - start)
        best[compute] = min(seconds)
    return min(best, key=best.__getitem__)
