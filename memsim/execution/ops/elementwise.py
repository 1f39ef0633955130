"""Execution of activations and sums."""

from collections.abc import Sequence

import numpy as np

import memsim_kernels as k
from memsim.execution.kernel_call import Attrs, Kernel, by_lane
from memsim.execution.storage.mapped_weights import Array


def _swiglu(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.swiglu_forward(o[0], i[0], i[1])


def _swiglu_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.swiglu_backward(o[0], o[1], i[0], i[1], i[2])


def _geglu(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.geglu_forward(o[0], i[0], i[1])


def _geglu_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.geglu_backward(o[0], o[1], i[0], i[1], i[2])


def _relu(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.relu_forward(o[0], i[0])


def _relu_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.relu_backward(o[0], i[0], i[1])


def _gelu(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.gelu_forward(o[0], i[0])


def _gelu_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.gelu_backward(o[0], i[0], i[1])


def _tanh(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    np.tanh(i[0], out=o[0])  # of one token


def _tanh_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    np.multiply(i[0], 1 - i[1] * i[1], out=o[0])


def _add(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.add(o[0], i[0], i[1])


def _add_row(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    np.add(i[0], i[1][a["row"]], out=o[0])


def _add_table_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for y, x in by_lane(a, o[0], i[0]):
        k.add(y, x, i[1][a["start"] : a["start"] + len(x)])


ELEMENTWISE_KERNELS: dict[str, Kernel] = {
    "swiglu": _swiglu,
    "swiglu_backward": _swiglu_backward,
    "geglu": _geglu,
    "geglu_backward": _geglu_backward,
    "relu": _relu,
    "relu_backward": _relu_backward,
    "gelu": _gelu,
    "gelu_backward": _gelu_backward,
    "tanh": _tanh,
    "tanh_backward": _tanh_backward,
    "add": _add,
    "add_row": _add_row,
    "add_table_rows": _add_table_rows,
}
