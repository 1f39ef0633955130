"""Time products with affine weights beside symmetric ones, and weigh a step of each: ``python tools/bench_formats.py``.

Both formats are called in turns in one process, shape by shape, forward and backward; the ratio is of the medians. Then
a capped ``tiled`` step of synthetic weights in each format: its peak footprint.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.execution.kernels import compute_paths, load_kernels
from memsim.ir.matrix_format import MatrixFormat
from memsim.models.matrix_formats import Formats
from memsim.models.presets import preset
from memsim.runtime import RunConfig, RunProgress, run
from memsim.weights.quantize import quantize
from memsim.weights.synthetic import write_synthetic

ROWS, OPS = 256, ("linear_q4", "linear_q4_backward_input")
FORMATS = {name: MatrixFormat(name, 32) for name in ("symmetric", "affine")}


def products(op: str, shape: tuple[int, int], kernel: Callable[..., None]) -> dict[str, Callable[[], None]]:
    """Return a call for each format of one product; ``shape`` is (out_features, in_features)."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[1]))
    n_in, n_out = (shape[1], shape[0]) if op == OPS[0] else (shape[0], shape[1])
    x = rng.standard_normal((ROWS, n_in)).astype(np.float32)
    y: NDArray[np.float32] = np.empty((ROWS, n_out), np.float32)
    calls: dict[str, Callable[[], None]] = {}
    for name, stored in FORMATS.items():
        q, scales = quantize(weights, stored, "w")
        attrs = {"group_size": stored.group_size, "n_rows": shape[0], "n_columns": shape[1]}
        calls[name] = partial(kernel, [y], [x, q, scales], attrs)
    return calls


def ratio(calls: dict[str, Callable[[], None]], rounds: int) -> tuple[float, float]:
    """Return affine's time over symmetric's, and symmetric's in seconds; the first call of each is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(found) for name, found in times.items()}
    return middle["affine"] / middle["symmetric"], middle["symmetric"]


def peaks(model: str, seq_len: int) -> dict[str, int]:
    """Return the peak footprint of a capped ``tiled`` step in each format."""
    found = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as work:
        for name, stored in FORMATS.items():
            pack = write_synthetic(Path(work) / name, preset(model), Formats(stored), 0, lambda *_: None)
            common: dict[str, Any] = {"budget_bytes": 10**9, "model": str(pack.directory), "schedule": "tiled"}
            done = run(RunConfig(**common, seq_len=seq_len, steps=2, out=Path(work) / f"{name}-run"), RunProgress())
            found[name] = done.result.peak_footprint_bytes or 0
    return found


def main() -> None:
    """Print one line a product and one a compute path, weighed by its arithmetic; then the footprints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    shapes = set(preset(asked.model).projections().values())
    for compute in compute_paths():
        kernels = load_kernels("f32" if compute == "f32" else "bf16", asked.threads)
        sums = np.zeros(2)
        for op in OPS:
            for shape in sorted(shapes):
                share, seconds = ratio(products(op, shape, kernels[op]), asked.rounds)
                sums += seconds * np.array([share, 1])
                print(f"{compute:12} {op:26} {shape[0]:6} x {shape[1]:<6} affine / symmetric {share:.3f}")
        print(f"{compute:12} all together {sums[0] / sums[1]:.3f}")
    found = peaks(asked.model, ROWS)
    apart = found["affine"] - found["symmetric"]
    print(f"tiled step of {asked.model}: {found}, {apart / 1e6:+.2f} MB")


if __name__ == "__main__":
    main()
