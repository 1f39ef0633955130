"""LoRA: the low-rank product beside a frozen linear layer, y += scale * (x A^T) B^T.

T tokens, K in_features, N out_features, R rank; A [R, K], B [N, R].
"""

from memsim_kernels.jit import F32
from memsim_kernels.matmul import NO_BIAS, NO_Q, NO_SCALES, product


def lora_forward(y: F32, h: F32, x: F32, a: F32, b: F32, scale: float) -> None:
    """Compute h = x A^T and y += scale * h B^T.

    Args:
        y: [T, N], added to.
        h: [T, R], written; ``lora_backward`` reads it.
        x: [T, K].
        a: [R, K].
        b: [N, R].
        scale: lora_alpha / R.
    """
    _multiply(h, x, a, False, True, 1.0, False)
    _multiply(y, h, b, False, True, scale, True)


def lora_backward(
    da: F32, db: F32, dx: F32, dh: F32, dy: F32, x: F32, h: F32, a: F32, b: F32, scale: float, accumulate: bool
) -> None:
    """Compute dB = scale * dy^T h, dh = scale * dy B, dA = dh^T x and dx += dh A.

    Args:
        da: [R, K], written, or added to when ``accumulate``.
        db: [N, R], written, or added to when ``accumulate``.
        dx: [T, K], added to.
        dh: [T, R], workspace.
        dy: [T, N].
        x: [T, K], as in the forward pass.
        h: [T, R], from the forward pass.
        a: [R, K].
        b: [N, R].
        scale: lora_alpha / R.
        accumulate: Add to da and db.
    """
    _multiply(db, dy, h, True, False, scale, accumulate)
    _multiply(dh, dy, b, False, False, scale, False)
    _multiply(da, dh, x, True, False, 1.0, accumulate)
    _multiply(dx, dh, a, False, False, 1.0, True)


def lora_a_forward(h: F32, x: F32, a: F32) -> None:
    """Compute h = x A^T; h [T, R] written, x [T, K], a [R, K]."""
    _multiply(h, x, a, False, True, 1.0, False)


def lora_b_forward(y: F32, h: F32, b: F32, scale: float) -> None:
    """Compute y += scale * h B^T; y [T, N] added to, h [T, R], b [N, R]."""
    _multiply(y, h, b, False, True, scale, True)


def lora_b_backward(db: F32, dh: F32, dy: F32, h: F32, b: F32, scale: float, accumulate: bool) -> None:
    """Compute dB = scale * dy^T h (added to when ``accumulate``) and dh = scale * dy B; dy [T, N], h and dh [T, R]."""
    _multiply(db, dy, h, True, False, scale, accumulate)
    _multiply(dh, dy, b, False, False, scale, False)


def lora_a_backward(da: F32, dh: F32, x: F32, accumulate: bool) -> None:
    """Compute dA = dh^T x, or dA += dh^T x when ``accumulate``; da [R, K], dh [T, R], x [T, K]."""
    _multiply(da, dh, x, True, False, 1.0, accumulate)


def lora_a_backward_input(dx: F32, dh: F32, a: F32, accumulate: bool) -> None:
    """Compute dx = dh A, or dx += dh A when ``accumulate``; dx [T, K], dh [T, R], a [R, K]."""
    _multiply(dx, dh, a, False, False, 1.0, accumulate)


def _multiply(
    c: F32, a: F32, b: F32, a_transposed: bool, b_transposed: bool, scale: float, accumulate: bool
) -> None:
    product(c, a, b, NO_Q, NO_SCALES, NO_BIAS, 8, a_transposed, b_transposed, scale, accumulate)
