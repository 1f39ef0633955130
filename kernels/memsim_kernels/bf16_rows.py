"""Row blocks of bf16 products: 16 rows rounded to bf16 and laid out step by step, and h of an adapter behind them.

h comes from the row blocks as they are laid out, which is the only pass over a.
"""

import numpy as np

from memsim_kernels.bf16_block import clear_line, round_line
from memsim_kernels.bf16_panels import BLOCK_BYTES, multiply_blocks
from memsim_kernels.jit import F32, helper
from memsim_kernels.vectors import address_of as address


@helper
def pack_rows(target: int, x: int, x_row: int, rows: int, depth: int) -> None:
    """Round one row block, zero beyond ``rows`` and ``depth``, to bf16 [step][row][32]."""
    for i in range(16):
        for step in range((depth + 31) // 32):
            round_line(target + (step * 16 + i) * 64, x + i * x_row + step * 128, depth - step * 32 if i < rows else 0)


@helper
def _mask_lanes(work: F32, at: int, row: int, side_at: int, side_steps: int, lane_rows: int, slot: int) -> None:
    """Clear, in 16 rows of h, the ranks that are not of the row's own lane."""
    for i in range(16):
        lane = (row + i) // lane_rows
        for step in range(side_at, side_at + side_steps):
            for j in range(32):
                if (step * 32 + j) // slot != lane:
                    work[at + step * (BLOCK_BYTES // 4) + i * 32 + j] = np.float32(0.0)


@helper
def lay_out_block(
    a: int, x: int, x_row: int, rows: int, depth: int, packed_steps: int, side_at: int, side_steps: int,
    low: int, first: bool, panel: int, group: int, rank_steps: int, job: int, transposed: bool, amx: bool,
    work: F32, row: int, lane_rows: int, slot: int,
) -> None:  # fmt: skip
    """Round a row block, add its product with the panel of 32 ranks to h, and append h to it once that is complete."""
    if group == 0:
        pack_rows(a, x, x_row, rows, depth)
    if rank_steps > 0 and packed_steps > 0:
        place = low + group * BLOCK_BYTES
        if first:
            for line in range(32):
                clear_line(place + line * 64)
        multiply_blocks(
            place, 128, 64, 0, place, 128, 64, 0, a, 0, panel, 1, packed_steps, job, 0, transposed, amx
        )  # fmt: skip
    if group == rank_steps - 1:
        if lane_rows > 0:
            _mask_lanes(work, (low - address(work)) // 4, row, side_at, side_steps, lane_rows, slot)
        for step in range(side_steps):
            for i in range(16):
                source = low + (side_at + step) * BLOCK_BYTES + i * 128
                round_line(a + ((packed_steps + step) * 16 + i) * 64, source, 32)
