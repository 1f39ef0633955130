"""Execution of products with packed and dense matrices, and of the gradients of what is trained beside them."""

from collections.abc import Sequence

import memsim_kernels as k
from memsim.execution.kernel_call import NO_BIAS, Attrs, Kernel, start_sum
from memsim.execution.storage.mapped_weights import Array
from memsim_kernels.lora import Adapter


def _embedding_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.embedding_q4_forward(o[0], i[0], i[1], i[2], a["group_size"], a["scale"])


def _unpack_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.unpack_q4(o[0], i[0], i[1], a["group_size"])


def forward_extras(o: Sequence[Array], rest: Sequence[Array], a: Attrs) -> tuple[Array, Adapter]:
    """Return bias and adapter of a product, from its inputs after the matrix."""
    if "lora_scale" not in a:
        return rest[0] if rest else NO_BIAS, Adapter()
    bias = rest[0] if len(rest) > 2 else NO_BIAS
    return bias, Adapter(rest[-2], rest[-1], a["lora_scale"], o[1], a.get("lanes", 1))


def backward_extras(o: Sequence[Array], rest: Sequence[Array], a: Attrs) -> tuple[bool, Adapter]:
    """Return whether to add to the output, which is prepared for it, and the adapter."""
    if "lora_scale" not in a:
        return start_sum(o[0], rest), Adapter()
    return start_sum(o[0], rest[2:]), Adapter(rest[0], rest[1], a["lora_scale"], o[1])


def _linear(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.linear_forward(o[0], i[0], i[1], *forward_extras(o, i[2:], a))


def _linear_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.linear_backward_input(o[0], i[0], i[1], *backward_extras(o, i[2:], a))


def _linear_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    bias, adapter = forward_extras(o, i[3:], a)
    k.linear_q4_forward(o[0], i[0], i[1], i[2], bias, a["group_size"], adapter)


def _linear_q4_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    accumulate, adapter = backward_extras(o, i[3:], a)
    k.linear_q4_backward_input(o[0], i[0], i[1], i[2], a["group_size"], accumulate, adapter)


def _lora_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    accumulate = all([start_sum(out, so_far) for out, so_far in zip(o, (i[4:5], i[5:6]), strict=False)])
    k.lora_backward(o[0], o[1], o[2], i[0], i[1], i[2], i[3], a["lora_scale"], accumulate)


def _linear_backward_weight(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.linear_backward_weight(o[0], i[0], i[1], start_sum(o[0], i[2:]))


def _sum_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.sum_rows(o[0], i[0], start_sum(o[0], i[1:]))


PRODUCT_KERNELS: dict[str, Kernel] = {
    "embedding_q4": _embedding_q4,
    "unpack_q4": _unpack_q4,
    "linear": _linear,
    "linear_backward_input": _linear_backward_input,
    "linear_q4": _linear_q4,
    "linear_q4_backward_input": _linear_q4_backward_input,
    "lora_backward": _lora_backward,
    "linear_backward_weight": _linear_backward_weight,
    "sum_rows": _sum_rows,
}
