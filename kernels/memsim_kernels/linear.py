"""Linear layers over a frozen matrix W [N, K]: dense in the arena, or INT4 unpacked tile by tile as it is used.

T tokens, N out_features, K in_features. The dense and the packed form of one matrix give the same bits. A LoRA adapter
beside the matrix makes the reduction R columns longer: y is written once, and a weight tile is unpacked once.
"""

import numpy as np
from numpy.typing import NDArray

from memsim_kernels.jit import F32, U32
from memsim_kernels.lora import NO_ADAPTER, Adapter, low_rank_backward, low_rank_forward
from memsim_kernels.matmul import NO_BIAS, NO_MATRIX, NO_Q, NO_SCALES, product

F16 = NDArray[np.float16]


def linear_forward(y: F32, x: F32, w: F32, bias: F32, adapter: Adapter = NO_ADAPTER) -> None:
    """Compute y = x W^T + bias + scale (x A^T) B^T.

    Args:
        y: [T, N], written.
        x: [T, K].
        w: [N, K].
        bias: [N], or an empty array for none.
        adapter: A, B and scale, if there is one.
    """
    low = low_rank_forward(x, adapter)
    product(y, x, w, NO_Q, NO_SCALES, bias, 16, False, True, 1.0, False, low, adapter.b)


def linear_backward_input(dx: F32, dy: F32, w: F32, accumulate: bool, adapter: Adapter = NO_ADAPTER) -> None:
    """Compute dx = dy W + scale (dy B) A, or add it to dx.

    Args:
        dx: [T, K], written.
        dy: [T, N].
        w: [N, K].
        accumulate: Add to dx.
        adapter: A, B and scale, if there is one.
    """
    low = low_rank_backward(dy, adapter)
    product(dx, dy, w, NO_Q, NO_SCALES, NO_BIAS, 16, False, False, 1.0, accumulate, low, adapter.a)


def linear_q4_forward(
    y: F32, x: F32, q: U32, scales: F16, bias: F32, group_size: int, adapter: Adapter = NO_ADAPTER
) -> None:
    """Compute y = x W^T + bias + scale (x A^T) B^T with W packed.

    Args:
        y: [T, N], written.
        x: [T, K].
        q: Packed W, uint32 (see ``levels``).
        scales: float16, and its offsets.
        bias: [N], or an empty array for none.
        group_size: Columns of W that share a scale, a multiple of 16.
        adapter: A, B and scale, if there is one.
    """
    low = low_rank_forward(x, adapter)
    packed = scales.view(np.uint16)
    product(y, x, NO_MATRIX, q, packed, bias, group_size, False, True, 1.0, False, low, adapter.b)


def linear_q4_backward_input(
    dx: F32, dy: F32, q: U32, scales: F16, group_size: int, accumulate: bool, adapter: Adapter = NO_ADAPTER
) -> None:
    """Compute dx = dy W + scale (dy B) A with W packed, or add it to dx.

    Args:
        dx: [T, K], written.
        dy: [T, N].
        q: Packed W, uint32 (see ``levels``).
        scales: float16, and its offsets.
        group_size: Columns of W that share a scale, a multiple of 16.
        accumulate: Add to dx.
        adapter: A, B and scale, if there is one.
    """
    low = low_rank_backward(dy, adapter)
    packed = scales.view(np.uint16)
    product(dx, dy, NO_MATRIX, q, packed, NO_BIAS, group_size, False, False, 1.0, accumulate, low, adapter.a)
