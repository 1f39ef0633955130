"""The loss: from all logits, or in one pass over the vocabulary."""

from collections.abc import Sequence

from memsim.ir.gradients import Backward
from memsim.ir.op import Attrs, OpTable, integer, lanes_of, require
from memsim.ir.ops.product import matrix_size, require_packed
from memsim.ir.program import Node, TensorType
from memsim.ir.tangents import WithTangent, same_op
from memsim.ir.work import ELEMENTWISE, VOCABULARY, Kind, OpWork, Types

HEAD_ROWS = 256
"""Tokens that the one-pass head does at a time; more go through the vocabulary again."""

LOSS_OPS = OpTable()


def head_rows(gradient: bool) -> int:
    """Return how many tokens the one-pass head does at a time: without a gradient there is room for twice as many."""
    return HEAD_ROWS if gradient else 2 * HEAD_ROWS


def head_work_floats(n_tokens: int, n_columns: int, threads: int, gradient: bool = True) -> int:
    """Return the f32 workspace of ``linear_cross_entropy_q4``: what the kernels of any compute path ask for, at most.

    Each thread holds a tile of logits for every token of ``head_rows``, with a gradient a row of sums too, and its
    panels.
    """
    rows = -(-min(n_tokens, head_rows(gradient)) // 16) * 16
    line = -(-n_columns // 32) * 32 + 16
    return rows * line // 2 + threads * (rows * ((line if gradient else 0) + 384) + 36_000) + 16


def _cross_entropy_gradient(b: Backward, node: Node) -> None:
    # The loss is the last op: its own gradient is the constant attribute `scale`, so no gradient is read.
    logits, labels = node.inputs
    stats, lse = node.outputs
    (dlogits,) = b.emit(node, "cross_entropy_backward", [logits, labels, lse, stats], logits)
    b.add(logits, dlogits)


@LOSS_OPS.op("cross_entropy", gradient=_cross_entropy_gradient, sees_sequence=True, work=VOCABULARY)
def _cross_entropy(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Stats f64 [3] = (sum of losses, number correct, number valid) and lse [T], from (logits [T, V], labels [T])."""
    lanes = lanes_of(attrs)
    require(i[1].dtype == "u32" and i[0].shape[0] == lanes * i[1].shape[0], i)
    return [TensorType((3 * lanes,), "f64"), TensorType((i[0].shape[0],))]


@LOSS_OPS.op("cross_entropy_backward", may_reuse=((0, 0),), work=VOCABULARY)
def _cross_entropy_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dlogits = scale (softmax - onehot) / valid, from (logits, labels, lse, stats)."""
    require(len(i) == 4, i)
    return [i[0]]


def all_but_workspace(i: Types, o: Types) -> int:
    """Return the bytes of all operands of a one-pass head but its workspace, which stays in the caches."""
    return sum(kind.n_bytes for kind in (*i, o[0], *o[2:]))


def _one_pass_gradient(b: Backward, node: Node) -> None:
    # The forward made the gradient too, in the same pass over the vocabulary.
    b.add(node.inputs[0], node.outputs[2])


def _one_pass_tangent(node: Node) -> WithTangent:
    given = same_op(node)
    return given._replace(op=f"{node.op}_tangent", outputs=[*given.outputs, "rho"])


# Logits, and their product with the matrix for the gradient; head_rows tokens a pass over the vocabulary.
@LOSS_OPS.op(
    "linear_cross_entropy_q4",
    gradient=_one_pass_gradient,
    tangent=_one_pass_tangent,
    sees_sequence=True,
    work=OpWork(
        Kind.MATMUL,
        lambda i, a: (4 if a["gradient"] else 2) * i[0].shape[0] * matrix_size(a),
        lambda i, a: -(-i[0].shape[0] // head_rows(bool(a["gradient"]))),
        all_but_workspace,
    ),
)
def linear_cross_entropy_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Loss statistics as of ``cross_entropy``, a workspace and, if attribute ``gradient``, dx [T, K].

    From (x [T, K], labels [T], q, scales, [bias [V]]). The logits x W^T + bias are never all there: one pass over the
    rows of W makes a tile of them, loss and gradient. With ``lanes`` the labels are those of each, and statistics come
    for each.
    """
    lanes = lanes_of(attrs)
    require(len(i) == 4 or (len(i) == 5 and i[4] == TensorType((integer(attrs, "n_rows"),))), i)
    require(i[0].shape == (lanes * i[1].shape[0], attrs["n_columns"]), i)
    require_packed(i[2], i[3], attrs)
    n_tokens, n_columns = i[0].shape
    work = TensorType((head_work_floats(n_tokens, n_columns, integer(attrs, "threads"), bool(attrs["gradient"])),))
    return [TensorType((3 * lanes,), "f64"), work, *([i[0]] if attrs["gradient"] else [])]


@LOSS_OPS.op("sum_losses", may_reuse=((0, 0),), work=ELEMENTWISE)
def _sum_losses(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Statistics of all micro-batches so far, from (sums, stats)."""
    require(i[0] == i[1], i)
    return [i[0]]
