"""The product with an INT4 matrix in bf16, forward and backward-input: unpacked panel by panel inside the loops.

Of a product y [M, N] = a [M, K] B, ROWS rows and STEPS * 32 of the reduction are done at a time. First their a is
rounded to bf16 and laid out in row blocks, once for all threads. Then each thread goes through its panels of 32
columns of B: one is multiplied by all row blocks, while the next is unpacked. y itself keeps the float32 sums.

A LoRA adapter makes the reduction R columns longer: y = [a, h] [B; S] with h = scale a P, where P [K, R] and S [R, N]
are the adapter's two matrices. h comes from the row blocks as they are laid out, which is the only pass over a.

Bits depend on the engine (the tiles of AMX add even and odd pairs apart), never on rows, threads or addresses.
"""

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from memsim_kernels import cpu
from memsim_kernels.bf16_block import release_tiles
from memsim_kernels.bf16_panels import (
    BLOCK_BYTES,
    COLUMNS,
    OWN_JOB,
    PANEL_BYTES,
    STEP_BYTES,
    STEPS,
    THREAD_FLOATS,
    group_shift_of,
    multiply_panels,
    prepare_tiles,
    round_step,
)
from memsim_kernels.bf16_rows import lay_out_block
from memsim_kernels.bf16_unpack import JOB_UNIT, JOB_UNITS
from memsim_kernels.jit import (
    BOOL,
    F32,
    FLOAT,
    INT,
    READ_1D,
    READ_2D,
    READ_Q,
    READ_SCALES,
    U16,
    U32,
    WRITE_1D,
    WRITE_2D,
    kernel,
)  # fmt: skip
from memsim_kernels.lora import NO_ADAPTER, Adapter
from memsim_kernels.panel import ALL
from memsim_kernels.vectors import address_of as address

__all__ = ["ROWS", "STEPS", "linear_q4_backward_input_bf16", "linear_q4_forward_bf16", "workspace_floats"]

F16 = NDArray[np.float16]

ROWS = 512

_NO_BIAS = np.empty(0, np.float32)


def workspace_floats(rows: int, depth: int, threads: int, rank: int = 0) -> int:
    """Return how many float32 of workspace a product needs: at most 1,060 KiB, and 137 KiB for each thread.

    An adapter adds 64 KiB for each 32 of its rank, and a panel of 66 KiB.

    Args:
        rows: M.
        depth: The length of the reduction: K forward, N backward.
        threads: Threads that Numba will use.
        rank: R of the adapter, 0 for none.
    """
    blocks, rank_steps = -(-min(rows, ROWS) // 16), -(-rank // 32)
    steps = min(STEPS, -(-depth // 32) + rank_steps)
    adapter = blocks * rank_steps * BLOCK_BYTES + (PANEL_BYTES if rank else 0)
    return blocks * steps * (STEP_BYTES // 8) + adapter // 4 + threads * THREAD_FLOATS + 16


@kernel(
    WRITE_2D, READ_2D, READ_Q, READ_SCALES, READ_1D, INT, READ_2D, READ_2D, FLOAT, BOOL, BOOL, BOOL, WRITE_1D, INT, INT,
    INT,
)  # fmt: skip
def _product(
    y: F32, x: F32, q: U32, scales: U16, bias: F32, group_size: int, into: F32, side: F32, lora_scale: float,
    transposed: bool, accumulate: bool, amx: bool, work: F32, workers: int, leave_out: int, lanes: int,
) -> None:  # fmt: skip
    """Compute y = x B + bias, or y += x B, with a low-rank product (scale x op(into)) op(side) beside it."""
    m, n = y.shape
    depth = x.shape[1]
    rank = side.shape[1] if transposed else side.shape[0]
    lane_rows, slot = (m // lanes, rank // lanes) if lanes > 1 else (0, 1)
    rank_steps, depth_steps, panels = (rank + 31) // 32, (depth + 31) // 32, (n + COLUMNS - 1) // COLUMNS
    group_shift = group_shift_of(group_size)
    most_blocks, most_steps = (min(m, ROWS) + 15) // 16, min(STEPS, depth_steps + rank_steps)
    skip = (-address(work) // 4) % 16
    own_at = skip + most_blocks * most_steps * (STEP_BYTES // 8)
    a = address(work) + skip * 4
    panel = address(work) + (own_at + workers * THREAD_FLOATS) * 4
    low = panel + (PANEL_BYTES if rank > 0 else 0)
    for row in range(0, m, ROWS):
        rows = min(ROWS, m - row)
        blocks = (rows + 15) // 16
        for at in range(0, depth_steps + rank_steps, STEPS):
            steps = min(STEPS, depth_steps + rank_steps - at)
            packed_steps = max(0, min(steps, depth_steps - at))
            side_at, side_steps = max(0, at - depth_steps), steps - packed_steps
            for group in range(max(rank_steps, 1)):
                if rank > 0:
                    for step in prange(packed_steps):
                        round_step(
                            panel + step * STEP_BYTES, into, transposed, (at + step) * 32, group * 32,
                            np.float32(lora_scale),
                        )  # fmt: skip
                for worker in prange(workers):
                    own = work[own_at + worker * THREAD_FLOATS : own_at + (worker + 1) * THREAD_FLOATS]
                    job = own[OWN_JOB // 4 : THREAD_FLOATS].view(np.int64)
                    job[JOB_UNIT] = job[JOB_UNITS] = 0  # nothing is unpacked meanwhile
                    if amx:
                        prepare_tiles(own)
                    for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
                        first = row + block * 16
                        lay_out_block(
                            a + block * steps * 1024, address(x) + (first * depth + at * 32) * 4, depth * 4, m - first,
                            min(packed_steps * 32, depth - at * 32), packed_steps, side_at, side_steps,
                            low + block * rank_steps * BLOCK_BYTES, at == 0, panel, group, rank_steps, address(job),
                            transposed, amx, work, first, lane_rows, slot,
                        )  # fmt: skip
                    if amx:
                        release_tiles()
            for worker in prange(workers):
                own = work[own_at + worker * THREAD_FLOATS : own_at + (worker + 1) * THREAD_FLOATS]
                begin, end = worker * panels // workers, (worker + 1) * panels // workers
                if amx:
                    prepare_tiles(own)
                multiply_panels(
                    address(y) + (row * n + begin * COLUMNS) * 4, n * 4, rows, n - begin * COLUMNS, begin, end,
                    a, at, steps, q, scales, bias, group_shift, transposed, accumulate or at > 0, amx, own, leave_out,
                    side, side_at, side_steps,
                )  # fmt: skip
                if amx:
                    release_tiles()


def linear_q4_forward_bf16(
    y: F32, x: F32, q: U32, scales: F16, bias: F32, group_size: int, work: F32,
    adapter: Adapter = NO_ADAPTER, amx: bool = cpu.HAS_AMX, leave_out: int = ALL,
) -> None:  # fmt: skip
    """Compute y = x W^T + bias + (scale x A^T) B^T, all factors rounded to bf16. Needs cpu.HAS_AVX512_BF16.

    Args:
        y: [T, N], written.
        x: [T, K].
        q: Packed W, uint32 (see ``levels``).
        scales: float16, and its offsets.
        bias: [N], or an empty array for none.
        group_size: 32, 64 or 128.
        work: At least ``workspace_floats(T, K, threads, R)``, overwritten.
        adapter: A, B and scale, if there is one; its workspace is not used.
        amx: Use the tiles rather than the vectors.
        leave_out: For benchmarks: ALL, WITHOUT_UNPACKING or ONLY_UNPACKING. y is meaningless unless ALL.
    """
    _product(
        y, x, q, scales.view(np.uint16), bias, group_size, adapter.a, adapter.b, adapter.scale, True, False, amx, work,
        get_num_threads(), leave_out, adapter.lanes,
    )  # fmt: skip


def linear_q4_backward_input_bf16(
    dx: F32, dy: F32, q: U32, scales: F16, group_size: int, accumulate: bool, work: F32,
    adapter: Adapter = NO_ADAPTER, amx: bool = cpu.HAS_AMX, leave_out: int = ALL,
) -> None:  # fmt: skip
    """Compute dx = dy W + (scale dy B) A, or add it to dx, all factors rounded to bf16. Needs cpu.HAS_AVX512_BF16.

    Args:
        dx: [T, K], written, or added to when ``accumulate``.
        dy: [T, N].
        q: Packed W, uint32 (see ``levels``).
        scales: float16, and its offsets.
        group_size: 32, 64 or 128.
        accumulate: Add to dx.
        work: At least ``workspace_floats(T, N, threads, R)``, overwritten.
        adapter: A, B and scale, if there is one; its workspace is not used.
        amx: Use the tiles rather than the vectors.
        leave_out: For benchmarks, as in ``linear_q4_forward_bf16``.
    """
    _product(
        dx, dy, q, scales.view(np.uint16), _NO_BIAS, group_size, adapter.b, adapter.a, adapter.scale, False, accumulate,
        amx, work, get_num_threads(), leave_out, 1,
    )  # fmt: skip
