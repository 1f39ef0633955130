"""Execution of the loss: from all logits, or in one pass over the vocabulary."""

from collections.abc import Sequence

import numpy as np
from numba import get_num_threads

import memsim_kernels as k
from memsim.errors import WorkerError
from memsim.execution.kernel_call import NO_BIAS, Attrs, Kernel
from memsim.execution.storage.mapped_weights import Array


def _cross_entropy(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    lanes = a.get("lanes", 1)
    for stats, lse, logits in zip(*(x.reshape(lanes, -1, *x.shape[1:]) for x in (*o, i[0])), strict=True):
        k.cross_entropy_forward(stats, lse, logits, i[1])


def _cross_entropy_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.cross_entropy_backward(o[0], i[0], i[1], i[2], i[3], a["scale"])


def head_outputs(o: Sequence[Array], labels: Array, a: Attrs) -> tuple[Array, Array | None, Array, Array]:
    """Return stats, dx if wanted, the workspace, which was planned for a number of threads, and every lane's labels.

    Raises:
        WorkerError: More threads are at work, which would write beyond it.
    """
    if get_num_threads() > a["threads"]:
        raise WorkerError(f"the step was planned for {a['threads']} threads, not {get_num_threads()}; plan it again")
    return o[0], o[2] if a["gradient"] else None, o[1], np.tile(labels, a["lanes"]) if "lanes" in a else labels


def _linear_cross_entropy_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    stats, dx, work, labels = head_outputs(o, i[1], a)
    bias = i[4] if len(i) > 4 else NO_BIAS
    k.head_q4(stats, dx, i[0], labels, i[2], i[3], a["n_rows"], a["group_size"], a["scale"], work, bias)


def _sum_losses(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    np.add(i[0], i[1], out=o[0])


LOSS_KERNELS: dict[str, Kernel] = {
    "cross_entropy": _cross_entropy,
    "cross_entropy_backward": _cross_entropy_backward,
    "linear_cross_entropy_q4": _linear_cross_entropy_q4,
    "sum_losses": _sum_losses,
}
