"""``python -m memsim.runtime.measure_rates THREADS f32|bf16``: the rates of this machine's kernels, as JSON on stdout.

A process of its own, as a worker is: kernels come from the cache, threads wait as they do in a run. Each rate has
several samples, over shapes of real models: their spread is the band.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np

from memsim.ir.opset import OPS
from memsim.ir.program import Attr, Node, Program, TensorType, Value
from memsim.planner.work import Work, node_work
from memsim.runtime.kernel_call import Kernel
from memsim.runtime.kernels import load_kernels
from memsim.runtime.paging import NUMPY_DTYPES, Array

_SHAPES = ((4_864, 896), (896, 4_864), (896, 896), (2_048, 5_504))
_SAMPLE_S = 0.15
_GROUP = 32

Samples = dict[str, list[float]]


class Bench:
    """Times ops on arrays of the right shapes.

    Args:
        kernels: The op table.
        seconds: Spent on each op at least.
    """

    def __init__(self, kernels: Mapping[str, Kernel], seconds: float = _SAMPLE_S) -> None:
        self._kernels = kernels
        self._seconds = seconds
        self._generator = np.random.default_rng(0)

    def time(self, op: str, inputs: Sequence[TensorType], **attrs: Attr) -> tuple[float, Work]:
        """Return the median seconds of ``op``, and its work."""
        rule = OPS[op].shape
        if rule is None:
            raise ValueError(f"{op} is no kernel")
        outputs = rule(inputs, attrs)
        names = [f"v{index}" for index in range(len(inputs) + len(outputs))]
        values = {name: Value(name, kind) for name, kind in zip(names, [*inputs, *outputs], strict=True)}
        node = Node(op, tuple(names[: len(inputs)]), tuple(names[len(inputs) :]), attrs)
        arrays = [self._array(kind) for kind in (*inputs, *outputs)]
        kernel = self._kernels[op]
        seconds = self.repeat(lambda: kernel(arrays[len(inputs) :], arrays[: len(inputs)], attrs))
        return seconds, node_work(Program(values, node.inputs, node.outputs, (node,)), node)

    def repeat(self, call: Callable[[], None]) -> float:
        """Return the median seconds of ``call``."""
        call()
        seconds: list[float] = []
        while sum(seconds) < self._seconds or len(seconds) < 5:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return median(seconds)

    def _array(self, kind: TensorType) -> Array:
        if kind.dtype == "u32":
            return self._generator.integers(0, 200, kind.shape, dtype=np.uint32)
        return self._generator.standard_normal(kind.shape).astype(NUMPY_DTYPES[kind.dtype])


def _packed(n_rows: int, n_columns: int) -> tuple[list[TensorType], dict[str, Attr]]:
    q = TensorType((-(-n_rows // 16), n_columns // 8, 16), "u32")
    scales = TensorType((n_columns // _GROUP, 16 * -(-n_rows // 16)), "f16")
    return [q, scales], {"n_rows": n_rows, "n_columns": n_columns, "group_size": _GROUP}


def measure(bench: Bench, shapes: Sequence[tuple[int, int]] = _SHAPES) -> Samples:
    """Return samples of every rate that kernels decide, by its name in device files."""
    samples: Samples = {}

    def add(name: str, value: float) -> None:
        if value > 0:
            samples.setdefault(name, []).append(value)

    launch_s, _ = bench.time("add", [TensorType((1, 16))] * 2)
    add("op_launch_s", launch_s)
    for n_rows, n_columns in shapes:
        packed, attrs = _packed(n_rows, n_columns)
        for op, width in (("linear_q4", n_columns), ("linear_q4_backward_input", n_rows)):
            # Two lengths tell the product from the unpacking, which does not depend on the length.
            (short_s, short), (long_s, long) = (
                bench.time(op, [TensorType((n_tokens, width)), *packed], **attrs) for n_tokens in (32, 256)
            )
            per_flop_s = (long_s - short_s) / (long.flops - short.flops)
            if per_flop_s > 0:
                add("matmul_flops_per_s", 1 / per_flop_s)
                add("unpack_weights_per_s", long.unpacked_weights / max(long_s - long.flops * per_flop_s, long_s / 50))
        matrix = TensorType((n_rows, n_columns))
        for op, width in (("linear", n_columns), ("linear_backward_input", n_rows)):
            seconds, work = bench.time(op, [TensorType((256, width)), matrix])
            add("dense_flops_per_s", work.flops / seconds)
        seconds, work = bench.time("unpack_q4", packed, **attrs)
        add("unpack_weights_per_s", work.unpacked_weights / seconds)
    _attention(bench, add)
    _elementwise(bench, add)
    return samples


def _attention(bench: Bench, add: Callable[[str, float], None]) -> None:
    for n_tokens, heads, kv_heads, width in ((256, 14, 2, 64), (512, 12, 2, 128)):
        q, k = TensorType((n_tokens, heads * width)), TensorType((n_tokens, kv_heads * width))
        attrs: dict[str, Attr] = {"n_heads": heads, "n_kv_heads": kv_heads, "scale": 0.1, "window": 0, "causal": True}
        for op, inputs in (
            ("attention", [q, k, k]),
            ("attention_backward", [q, q, k, k, q, TensorType((heads, n_tokens))]),
        ):
            seconds, work = bench.time(op, inputs, **attrs)
            add("attention_flops_per_s", work.flops / seconds)


def _elementwise(bench: Bench, add: Callable[[str, float], None]) -> None:
    wide, narrow, vector = TensorType((256, 4_864)), TensorType((256, 896)), TensorType((896,))
    for op, inputs, attrs in (
        ("swiglu", [wide, wide], {}),
        ("swiglu_backward", [wide, wide, wide], {}),
        ("add", [narrow, narrow], {}),
        ("rmsnorm", [narrow, vector], {"eps": 1e-6}),
    ):
        seconds, work = bench.time(op, inputs, **attrs)
        add("elementwise_bytes_per_s", work.moved_bytes / seconds)
    logits, labels, stats = TensorType((64, 151_936)), TensorType((64,), "u32"), TensorType((3,), "f64")
    for op, inputs in (
        ("cross_entropy", [logits, labels]),
        ("cross_entropy_backward", [logits, labels, TensorType((64,)), stats]),
    ):
        seconds, work = bench.time(op, inputs, scale=1.0)
        add("vocabulary_bytes_per_s", work.moved_bytes / seconds)
    large = TensorType((4_096, 4_096))
    seconds, work = bench.time("add", [large, large])
    add("memory_bytes_per_s", work.moved_bytes / seconds)


def main() -> None:
    """Measure, and print."""
    threads, compute = int(sys.argv[1]), sys.argv[2]
    print(json.dumps(measure(Bench(load_kernels(compute, threads)))))


if __name__ == "__main__":
    main()
