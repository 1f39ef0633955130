"""Execution of normalisations and their gradients."""

from collections.abc import Sequence

import memsim_kernels as k
from memsim.execution.kernel_call import NO_BIAS, Attrs, Kernel, start_sum
from memsim.execution.storage.mapped_weights import Array


def _rmsnorm(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    size = len(i[1])
    k.rmsnorm_forward(o[0].reshape(-1, size), o[1], i[0].reshape(-1, size), i[1], a["eps"])


def _rmsnorm_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    adding = start_sum(o[0], i[4:])
    dx, dy, x = (array.reshape(-1, len(i[3])) for array in (o[0], i[0], i[1]))
    k.rmsnorm_backward_input(dx, dy, x, i[2], i[3], adding)


def _rmsnorm_backward_weight(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    dy, x = (array.reshape(-1, len(i[3])) for array in i[:2])
    k.norm_backward_weight(o[0], dy, x, NO_BIAS, i[2], start_sum(o[0], i[4:]))


def _layernorm(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.layernorm_forward(o[0], o[1], o[2], i[0], i[1], i[2], a["eps"])


def _layernorm_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.layernorm_backward_input(o[0], i[0], i[1], i[2], i[3], i[4], start_sum(o[0], i[5:]))


def _layernorm_backward_weight(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.norm_backward_weight(o[0], i[0], i[1], i[2], i[3], start_sum(o[0], i[4:]))


NORM_KERNELS: dict[str, Kernel] = {
    "rmsnorm": _rmsnorm,
    "rmsnorm_backward_input": _rmsnorm_backward_input,
    "rmsnorm_backward_weight": _rmsnorm_backward_weight,
    "layernorm": _layernorm,
    "layernorm_backward_input": _layernorm_backward_input,
    "layernorm_backward_weight": _layernorm_backward_weight,
}
