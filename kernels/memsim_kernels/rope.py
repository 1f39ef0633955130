"""Rotary position embedding, half-split: (x1, x2) of a head becomes (x1 cos - x2 sin, x2 cos + x1 sin).

T tokens, D head_dim; x1 and x2 are the first and the second D/2 columns of a head.
"""

from typing import Any

import numpy as np
from numba import config, prange, types
from numba.extending import intrinsic

from memsim_kernels.jit import F32, FLOAT, INT, READ_2D, WRITE_2D, kernel
from memsim_kernels.vectors import LANES, data_of, spread, vector_at

if config.DISABLE_JIT:

    def _rotate_16(y: F32, at: int, x: F32, half: int, cos: F32, sin: F32, angle: int, sign: Any) -> None:
        """Rotate elements ``at`` ... ``at`` + 15 and those ``half`` further on."""
        first, second = x[at : at + LANES].copy(), x[at + half : at + half + LANES].copy()
        c, s = cos[angle : angle + LANES], sign * sin[angle : angle + LANES]
        y[at : at + LANES], y[at + half : at + half + LANES] = first * c - second * s, second * c + first * s

else:

    @intrinsic  # type: ignore[untyped-decorator]
    def _rotate_16(
        typing_context: Any, y: Any, at: Any, x: Any, half: Any, cos: Any, sin: Any, angle: Any, sign: Any
    ) -> Any:
        """Rotate elements ``at`` ... ``at`` + 15 and those ``half`` further on."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            y, x, cos, sin = (data_of(context, builder, signature, arguments, i) for i in (0, 2, 4, 5))
            at, half, angle = arguments[1], arguments[3], arguments[6]
            places = at, builder.add(at, half)
            first, second = (builder.load(vector_at(builder, x, place), align=4) for place in places)
            c, s = (builder.load(vector_at(builder, table, angle), align=4) for table in (cos, sin))
            s = builder.fmul(s, spread(builder, arguments[7]))
            turned = (
                builder.fsub(builder.fmul(first, c), builder.fmul(second, s)),
                builder.fadd(builder.fmul(second, c), builder.fmul(first, s)),
            )
            for value, place in zip(turned, places, strict=True):
                builder.store(value, vector_at(builder, y, place), align=4)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(y, i64, x, i64, cos, sin, i64, types.float32), codegen


@kernel(WRITE_2D, READ_2D, READ_2D, READ_2D, INT, FLOAT)
def _rotate(y: F32, x: F32, cos: F32, sin: F32, n_heads: int, direction: float) -> None:
    half, row = cos.shape[1], x.shape[1]
    sign = np.float32(direction)
    flat_y, flat_x, flat_cos, flat_sin = y.reshape(-1), x.reshape(-1), cos.reshape(-1), sin.reshape(-1)
    for t in prange(x.shape[0]):
        for head in range(n_heads):
            start, angle = t * row + 2 * half * head, t * half
            for d in range(0, half - LANES + 1, LANES):
                _rotate_16(flat_y, start + d, flat_x, half, flat_cos, flat_sin, angle + d, sign)
            for d in range(half // LANES * LANES, half):
                x1, x2 = flat_x[start + d], flat_x[start + half + d]
                c, s = flat_cos[angle + d], sign * flat_sin[angle + d]
                flat_y[start + d] = x1 * c - x2 * s
                flat_y[start + half + d] = x2 * c + x1 * s


def rope_forward(y: F32, x: F32, cos: F32, sin: F32, n_heads: int) -> None:
    """Rotate every head of every token.

    Args:
        y: [T, n_heads * D], written; may be ``x`` itself.
        x: [T, n_heads * D].
        cos: [T, D / 2].
        sin: [T, D / 2].
        n_heads: Heads side by side in a row.
    """
    _rotate(y, x, cos, sin, n_heads, 1.0)


def rope_backward(dx: F32, dy: F32, cos: F32, sin: F32, n_heads: int) -> None:
    """Rotate back: the gradient of ``rope_forward``.

    Args:
        dx: [T, n_heads * D], written; may be ``dy`` itself.
        dy: [T, n_heads * D].
        cos: [T, D / 2].
        sin: [T, D / 2].
        n_heads: Heads side by side in a row.
    """
    _rotate(dx, dy, cos, sin, n_heads, -1.0)
