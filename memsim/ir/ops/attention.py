"""Attention and rotary positions, and their gradients."""

from collections.abc import Sequence

from memsim.ir.gradients import Backward
from memsim.ir.op import Attrs, OpError, OpTable, integer, lanes_of, require
from memsim.ir.program import Node, TensorType
from memsim.ir.tangents import in_lanes, tangent_op
from memsim.ir.work import ELEMENTWISE, Kind, OpWork

ATTENTION_OPS = OpTable()


def _rope_gradient(b: Backward, node: Node) -> None:
    x, cos, sin = node.inputs
    (dx,) = b.emit(node, "rope_backward", [b.grad(node.outputs[0]), cos, sin], x)
    b.add(x, dx)


@ATTENTION_OPS.op(
    "rope",
    may_reuse=((0, 0),),
    gradient=_rope_gradient,
    tangent=in_lanes,
    sees_sequence=True,
    work=ELEMENTWISE,
)
def _rope(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rotate each head of x [T, heads D] by position, from (x, cos [T, D/2], sin [T, D/2])."""
    require(i[1] == i[2] and i[0].shape[1] == integer(attrs, "n_heads") * 2 * i[1].shape[1], i)
    return [i[0]]


@ATTENTION_OPS.op("rope_backward", may_reuse=((0, 0),), work=ELEMENTWISE)
def _rope_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rotate a gradient back, from (dy, cos, sin)."""
    return _rope(i, attrs)


def _padding(rest: Sequence[TensorType], attrs: Attrs) -> None:
    """Check the optional last input of attention: the number of tokens that are no padding, u32 [1]."""
    require(len(rest) == 0 or (list(rest) == [TensorType((1,), "u32")] and not attrs["causal"]), rest)


def attended_pairs(n_rows: int, attrs: Attrs) -> int:
    """Return the (query, key) pairs that the mask lets through: all, or causal within ``window`` keys if not 0."""
    lanes = lanes_of(attrs)
    n_tokens = n_rows // lanes
    if not attrs.get("causal", True):
        return lanes * n_tokens * n_tokens
    window = min(int(attrs.get("window", 0)) or n_tokens, n_tokens)
    return lanes * (window * (window + 1) // 2 + (n_tokens - window) * window)


def _attention_gradient(b: Backward, node: Node) -> None:
    q, k, v, *n_valid = node.inputs
    o, lse = node.outputs
    dq, dk, dv, _ = b.emit(node, "attention_backward", [b.grad(o), q, k, v, o, lse, *n_valid], q, k, v, lse)
    b.add(q, dq)
    b.add(k, dk)
    b.add(v, dv)


# Two products forward; backward makes q k^T again, then dv, dp, dq and dk.
@ATTENTION_OPS.op(
    "attention",
    gradient=_attention_gradient,
    tangent=tangent_op("work"),
    sees_sequence=True,
    work=OpWork(Kind.ATTENTION, lambda i, a: 4 * attended_pairs(i[0].shape[0], a) * i[0].shape[1]),
)
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


@ATTENTION_OPS.op(
    "attention_backward",
    work=OpWork(Kind.ATTENTION, lambda i, a: 10 * attended_pairs(i[0].shape[0], a) * i[0].shape[1]),
)
def _attention_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """dq, dk, dv and the workspace delta [NH, T], from (do, q, k, v, o, lse, [n_valid])."""
    _padding(i[6:], attrs)
    require(len(i) in (6, 7) and i[0] == i[1] == i[4] and attention(i[1:4], attrs)[1] == i[5], i)
    return [i[1], i[2], i[3], i[5]]
