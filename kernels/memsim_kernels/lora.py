"""LoRA: the low-rank product beside a frozen linear layer, h = x A^T and y += scale * h B^T, and its gradients.

T tokens, K in_features, N out_features, R rank; A [R, K], B [N, R], scale = lora_alpha / R.
"""

from memsim_kernels.jit import F32
from memsim_kernels.matmul import NO_BIAS, NO_Q, NO_SCALES, product


def lora_a_forward(h: F32, x: F32, a: F32) -> None:
    """Compute h = x A^T.

    Args:
        h: [T, R], written.
        x: [T, K].
        a: [R, K].
    """
    _multiply(h, x, a, False, True, 1.0, False)


def lora_b_forward(y: F32, h: F32, b: F32, scale: float) -> None:
    """Compute y += scale * h B^T.

    Args:
        y: [T, N], added to.
        h: [T, R].
        b: [N, R].
        scale: Factor of the product.
    """
    _multiply(y, h, b, False, True, scale, True)


def lora_b_backward(db: F32, dh: F32, dy: F32, h: F32, b: F32, scale: float, accumulate: bool) -> None:
    """Compute dB = scale * dy^T h and dh = scale * dy B.

    Args:
        db: [N, R], written, or added to when ``accumulate``.
        dh: [T, R], written.
        dy: [T, N].
        h: [T, R], from the forward pass.
        b: [N, R].
        scale: As in the forward pass.
        accumulate: Add to db.
    """
    _multiply(db, dy, h, True, False, scale, accumulate)
    _multiply(dh, dy, b, False, False, scale, False)


def lora_a_backward(da: F32, dh: F32, x: F32, accumulate: bool) -> None:
    """Compute dA = dh^T x.

    Args:
        da: [R, K], written, or added to when ``accumulate``.
        dh: [T, R], from ``lora_b_backward``.
        x: [T, K], as in the forward pass.
        accumulate: Add to da.
    """
    _multiply(da, dh, x, True, False, 1.0, accumulate)


def lora_a_backward_input(dx: F32, dh: F32, a: F32, accumulate: bool) -> None:
    """Compute dx = dh A.

    Args:
        dx: [T, K], written, or added to when ``accumulate``.
        dh: [T, R], from ``lora_b_backward``.
        a: [R, K].
        accumulate: Add to dx.
    """
    _multiply(dx, dh, a, False, False, 1.0, accumulate)


def _multiply(c: F32, a: F32, b: F32, a_transposed: bool, b_transposed: bool, scale: float, accumulate: bool) -> None:
    product(c, a, b, NO_Q, NO_SCALES, NO_BIAS, 16, a_transposed, b_transposed, scale, accumulate)
