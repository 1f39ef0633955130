"""The contestant of our kernels: ``python -m memsim.bench.kernel_calls THREADS``.

A node is called as a run calls it, through the op table. Only what no run does, a roof and a product with a part left
out, comes from ``memsim_kernels`` directly. Every result is compared with float64 NumPy before anything is timed.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.bench.cases import HEAD, PRODUCTS, one_node
from memsim.bench.contestant import Call, Case, CaseError, serve
from memsim.bench.expected import EXPECTED, Outputs, head, product
from memsim.execution.kernels import load_kernels
from memsim.ir.matrix_format import format_of
from memsim.ir.program import TensorType
from memsim.weights.quantize import dequantize
from memsim_kernels import cpu, roof
from memsim_kernels.matmul import product as product_f32
from memsim_kernels.panel import ONLY_UNPACKING, WITHOUT_UNPACKING

Array = NDArray[Any]

# Largest difference to float64, as a share of the largest element. f32 adds a rounding of 6e-8 a step, some thousand
# steps. bf16 rounds both factors to 8 bits (2e-3 each at most): sums of thousands of them differ by 3e-3.
TOLERANCE = {"f32": 2e-5, "bf16": 1e-2}
ROOF_FLOPS = {cpu.AMX: 8 * 10**9, cpu.AVX512_BF16: 10**9, cpu.F32: 10**9}  # some milliseconds
DTYPES = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "u32": np.uint32}


class KernelCalls:
    """Makes the calls of a case on ``threads`` threads.

    Attributes:
        kernels: The op table of each compute path that was asked for so far.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.kernels: dict[str, Mapping[str, Callable[..., None]]] = {}

    def prepare(self, case: Case) -> dict[str, Call]:
        """Return the calls of a case: ``whole``, or for products also what ablation needs, or the roofs.

        Raises:
            CaseError: A result is wrong.
        """
        compute = case.get("compute", "f32")
        if compute not in self.kernels:
            self.kernels[compute] = dict(load_kernels(compute, self._threads))
        if case["op"] == "roofs":
            return {engine: _roof(engine) for engine in cpu.engines()}
        op, attrs = case["op"], case["attrs"]
        program = one_node(op, [TensorType(tuple(shape), dtype) for shape, dtype in case["inputs"]], attrs)
        inputs = _inputs(op, [program.values[name].type for name in program.inputs], attrs)
        outputs = [_empty(program.values[name].type) for name in program.outputs]
        _check(case, self.kernels[compute][op], outputs, inputs)
        kernel = self.kernels[compute][op]
        calls = {"whole": Call(lambda: kernel(outputs, inputs, attrs))}
        if op in PRODUCTS:
            calls |= _ablated(op == PRODUCTS[1], compute, outputs[0], inputs, attrs["group_size"], self._threads)
        return calls


def _roof(engine: str) -> Call:
    flops = roof.run_roof(engine, ROOF_FLOPS[engine])
    return Call(lambda: roof.run_roof(engine, flops), flops)


def _inputs(op: str, types: Sequence[TensorType], attrs: Mapping[str, Any]) -> list[Array]:
    """Return random inputs; weights such that products of normalised activations stay near 1."""
    rng = np.random.default_rng(0)
    inputs: list[Array] = []
    for kind in types:
        if kind.dtype == "u32":
            inputs.append(rng.integers(0, 2**32 if len(kind.shape) == 3 else attrs["n_rows"], kind.shape, np.uint32))
        elif kind.dtype == "f16":
            scales = rng.uniform(0.1, 0.3, kind.shape) / np.sqrt(attrs["n_columns"])
            inputs.append(scales.astype(np.float16))
        else:
            inputs.append(rng.standard_normal(kind.shape).astype(DTYPES[kind.dtype]))
    if op == "attention_backward":  # reads the results of the forward pass
        o, lse = EXPECTED["attention"]([x.astype(np.float64) for x in inputs[1:4]], attrs)
        inputs[4:] = [x.astype(np.float32) for x in (o, lse) if x is not None]
    if op == "adamw":
        inputs[0][:] = 1.0
        np.abs(inputs[3], out=inputs[3])  # the second moment is a mean of squares
    return inputs


def _empty(kind: TensorType) -> Array:
    """Return an output that shows every element that a kernel forgets to write."""
    return np.full(kind.shape, np.nan, DTYPES[kind.dtype])


def _check(case: Case, kernel: Callable[..., None], outputs: list[Array], inputs: list[Array]) -> None:
    op, attrs, tolerance = case["op"], case["attrs"], TOLERANCE[case["compute"]]
    want: Outputs
    doubles = [x.astype(np.float64) for x in inputs if x.dtype.kind == "f" and x.dtype != np.float16]
    if op in PRODUCTS:
        want = [product(op, doubles[0], _rows(inputs[1], inputs[2], attrs, 0, attrs["n_rows"]))]
    elif op == HEAD:
        x, labels, q, scales = inputs
        stats, dx = head(doubles[0], labels, lambda a, b: _rows(q, scales, attrs, a, b), attrs["n_rows"])
        want = [stats, None, dx]  # the second is a workspace
    else:
        want = EXPECTED[op](doubles, attrs)
    kernel(outputs, inputs, attrs)
    if op == "adamw":
        outputs = [inputs[1], inputs[3]]  # updated where they are
    for index, (got, expected) in enumerate(zip(outputs, want, strict=True)):
        if expected is not None:
            error = np.abs(got - expected).max() / np.abs(expected).max()
            if not error <= tolerance:  # NaN is wrong too
                raise CaseError(
                    f"{op} in {case['compute']} is wrong: output {index} of shape {list(got.shape)} differs from "
                    f"float64 by {error:.1e} of its largest element, over {tolerance:.0e}; nothing was timed"
                )


def _rows(q: Array, scales: Array, attrs: Mapping[str, Any], start: int, stop: int) -> NDArray[np.float64]:
    panels = slice(start // 16, -(-stop // 16))
    lanes = slice(16 * panels.start, 16 * panels.stop)
    stored = format_of(q.shape, scales.shape, attrs["n_rows"], attrs["n_columns"], attrs["group_size"])
    return dequantize(q[panels], scales[:, lanes], stop - start, attrs["n_columns"], stored).astype(np.float64)


def _ablated(
    backward: bool, compute: str, y: Array, inputs: Sequence[Array], group_size: int, threads: int
) -> dict[str, Call]:
    """Return the same product without its unpacking, and its unpacking alone."""
    x, q, scales = inputs
    parts = {"without_unpacking": WITHOUT_UNPACKING, "unpacking": ONLY_UNPACKING}
    nothing = np.empty(0, np.float32)
    if compute == "f32":
        no_matrix = np.empty((0, 0), np.float32)
        bits = scales.view(np.uint16)

        def f32(part: int) -> None:
            product_f32(y, x, no_matrix, q, bits, nothing, group_size, False, not backward, 1.0, False, leave_out=part)

        return {name: Call(lambda part=part: f32(part)) for name, part in parts.items()}  # type: ignore[misc]
    from memsim_kernels.q4_bf16 import linear_q4_backward_input_bf16, linear_q4_forward_bf16, workspace_floats

    work = np.zeros(workspace_floats(len(x), x.shape[1], threads), np.float32)

    def bf16(part: int) -> None:
        if backward:
            linear_q4_backward_input_bf16(y, x, q, scales, group_size, False, work, leave_out=part)
        else:
            linear_q4_forward_bf16(y, x, q, scales, nothing, group_size, work, leave_out=part)

    return {name: Call(lambda part=part: bf16(part)) for name, part in parts.items()}  # type: ignore[misc]


if __name__ == "__main__":
    serve(KernelCalls(int(sys.argv[1])).prepare)
