"""The op table of execution: op name -> a call of a kernel, and what a process does to have the kernels in memory.

Each family of ops has a file with its own table; in a run, only those and this one import ``memsim_kernels``.
"""

import ctypes
import gc
import time
from contextlib import suppress

import numpy as np
from numba import set_num_threads

from memsim.execution.kernel_call import Kernel
from memsim.execution.ops.attention import ATTENTION_KERNELS
from memsim.execution.ops.bf16 import bf16_kernels
from memsim.execution.ops.elementwise import ELEMENTWISE_KERNELS
from memsim.execution.ops.loss import LOSS_KERNELS
from memsim.execution.ops.norm import NORM_KERNELS
from memsim.execution.ops.optimizer import OPTIMIZER_KERNELS
from memsim.execution.ops.product import PRODUCT_KERNELS
from memsim.execution.ops.row import ROW_KERNELS
from memsim.execution.ops.tangent import tangent_kernels
from memsim.execution.ops.tile import TILE_KERNELS
from memsim.execution.ops.zeroth_order import ZEROTH_ORDER_KERNELS
from memsim_kernels import cpu, warmup

KERNELS: dict[str, Kernel] = (
    PRODUCT_KERNELS
    | NORM_KERNELS
    | ATTENTION_KERNELS
    | ELEMENTWISE_KERNELS
    | ROW_KERNELS
    | LOSS_KERNELS
    | OPTIMIZER_KERNELS
    | ZEROTH_ORDER_KERNELS
    | TILE_KERNELS
    | tangent_kernels(PRODUCT_KERNELS["linear_q4"], LOSS_KERNELS["linear_cross_entropy_q4"])
)


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
    return KERNELS | bf16_kernels(threads, rank)


def finish_loading() -> None:
    """Give back to the system what loading needed, and spare the garbage collector what stays."""
    gc.collect()
    with suppress(OSError, AttributeError):  # GNU's C library only; elsewhere free() decides
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()


def compute_paths() -> tuple[str, ...]:
    """Return the compute paths that this processor has."""
    return ("f32", "bf16") if cpu.HAS_AVX512_BF16 else ("f32",)


def compiled_directory() -> str:
    """Return where Numba keeps the compiled kernels of these sources."""
    return str(warmup.KERNELS[0].stats.cache_path)  # type: ignore[attr-defined]


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
