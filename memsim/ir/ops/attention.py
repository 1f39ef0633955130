"""Attention and rotary positions, and their gradients."""

from collections.abc import Sequence

from memsim.ir.op import Attrs, OpError, OpTable, integer, lanes_of, require
from memsim.ir.program import TensorType

ATTENTION_OPS = OpTable()


@ATTENTION_OPS.op("rope", may_reuse=((0, 0),))
def _rope(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rotate each head of x [T, heads D] by position, from (x, cos [T, D/2], sin [T, D/2])."""
    require(i[1] == i[2] and i[0].shape[1] == integer(attrs, "n_heads") * 2 * i[1].shape[1], i)
    return [i[0]]


@ATTENTION_OPS.op("rope_backward", may_reuse=((0, 0),))
def _rope_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rotate a gradient back, from (dy, cos, sin)."""
    return _rope(i, attrs)


def _padding(rest: Sequence[TensorType], attrs: Attrs) -> None:
    """Check the optional last input of attention: the number of tokens that are no padding, u32 [1]."""
    require(len(rest) == 0 or (list(rest) == [TensorType((1,), "u32")] and not attrs["causal"]), rest)


@ATTENTION_OPS.op("attention")
def attention(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Grouped-query attention: o [T, NH D] and lse [NH, T], from (q [T, NH D], k [T, NKV D], v, [n_valid]).

    O = softmax(``scale`` q k^T) v. If ``causal``, query t sees keys max(0, t - window + 1) ... t (0 ... t if ``window``
    is 0), otherwise all keys. With n_valid only so many tokens attend and are seen, after the ``n_before`` first rows,
    which always do; o is 0 beyond.
    """
    q, k, v = i[:3]
    _padding(i[3:], attrs)
    window, causal, scale = integer(attrs, "window"), attrs["causal"], attrs["scale"]
    seen = isinstance(causal, bool) and (window == 0 or (window > 0 and causal))
    if not (seen and isinstance(scale, float) and scale > 0.0):
        raise OpError(f"attention needs a float scale > 0, a bool causal, window >= 0 and 0 unless causal: {attrs}")
    heads, kv_heads = integer(attrs, "n_heads"), integer(attrs, "n_kv_heads")
    lanes = lanes_of(attrs)
    require(k == v and q.shape[1] * kv_heads == k.shape[1] * heads and q.shape[0] % lanes == 0, i)
    return [q, TensorType((lanes * heads, q.shape[0] // lanes))]


@ATTENTION_OPS.op("attention_backward")
def _attention_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """dq, dk, dv and the workspace delta [NH, T], from (do, q, k, v, o, lse, [n_valid])."""
    _padding(i[6:], attrs)
    require(len(i) in (6, 7) and i[0] == i[1] == i[4] and attention(i[1:4], attrs)[1] == i[5], i)
    return [i[1], i[2], i[3], i[5]]
