"""Execution of updates by an optimizer."""

from collections.abc import Sequence

import memsim_kernels as k
from memsim.execution.kernel_call import Attrs, Kernel
from memsim.execution.storage.mapped_weights import Array


def _parameters(i: Sequence[Array], a: Attrs) -> list[tuple[Array, Array, slice]]:
    """Return (parameter, gradient, its slice of one state vector) for each tensor of an update, all flat."""
    n, start, rows = int(a["n_tensors"]), 0, []
    for parameter, gradient in zip(i[1 : n + 1], i[n + 1 : 2 * n + 1], strict=True):
        rows.append((parameter.reshape(-1), gradient.reshape(-1), slice(start, start + parameter.size)))
        start += parameter.size
    return rows


def _sgd(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for parameter, gradient, _ in _parameters(i, a):
        k.sgd_update(parameter, gradient, a["lr"], a["weight_decay"])


def _momentum(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for parameter, gradient, where in _parameters(i, a):
        k.momentum_update(parameter, i[-1][where], gradient, a["lr"], a["momentum"], a["weight_decay"])


def _adamw(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    first, second = i[-1].reshape(2, -1)
    step = int(i[0][0])
    settings = (a["lr"], a["beta1"], a["beta2"], a["eps"], a["weight_decay"])
    for parameter, gradient, where in _parameters(i, a):
        k.adamw_update(parameter, first[where], second[where], gradient, *settings, step)


OPTIMIZER_KERNELS: dict[str, Kernel] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adamw": _adamw,
}
