"""The product of two small matrices in cache: the one inner loop under every matrix product of this package.

Each element of the result is one chain of fused multiply-adds in ascending order of the reduction index, beginning
at the value that the element had before. Its bits therefore depend on nothing but its own row and column: not on
how many rows or columns there are, how they are cut into tiles, or which thread computes them.
"""

from typing import Any

import numpy as np
from numba import config, types
from numba.extending import intrinsic

from memsim_kernels.jit import F32, helper

LANES = 16

if config.DISABLE_JIT:

    def _address(array: Any) -> int:
        return int(array.ctypes.data)

else:

    @intrinsic
    def _address(typing_context: Any, array: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            return builder.ptrtoint(data, context.get_value_type(types.int64))

        return types.int64(array), codegen


@helper
def multiply(
    c: F32, c_at: int, c_row: int, a: F32, a_at: int, a_row: int, a_k: int, b: F32, b_at: int, b_row: int,
    rows: int, depth: int, columns: int,
) -> None:  # fmt: skip
    """Add a b to c, where c is [rows, columns], a [rows, depth] and b [depth, columns].

    All three are flat arrays. c[i, j] is at ``c_at + i * c_row + j``, a[i, k] at ``a_at + i * a_row + k * a_k`` and
    b[k, j] at ``b_at + k * b_row + j``. ``columns`` is a multiple of LANES.
    """
    for i in range(rows):
        out = c[c_at + i * c_row : c_at + i * c_row + columns]
        for k in range(depth):
            value = a[a_at + i * a_row + k * a_k]
            line = b[b_at + k * b_row : b_at + k * b_row + columns]
            for j in range(columns):
                out[j] += value * line[j]


@helper
def aligned(size: int) -> Any:
    """Return a new float32 array of ``size`` elements that begins on a cache line."""
    block = np.empty(size + LANES, np.float32)
    skip = (-_address(block) // 4) % LANES
    return block[skip : skip + size]
