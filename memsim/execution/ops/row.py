"""Execution of ops that take, place, repeat and join rows."""

from collections.abc import Sequence

import numpy as np

import memsim_kernels as k
from memsim.data.windows import IGNORED
from memsim.errors import WorkerError
from memsim.execution.kernel_call import Attrs, Kernel, by_lane, start_sum
from memsim.execution.storage.mapped_weights import Array


def _take_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for y, x, *rest in by_lane(a, o[0], *i):
        rows = x[a["start"] : a["start"] + a["count"]]
        if rest:
            k.add(y, rows, rest[0])
        else:
            k.copy(y, rows)


def _put_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    start_sum(o[0], i[:1])
    for y, rows in by_lane(a, o[0], i[1]):
        k.copy(y[a["start"] : a["start"] + len(rows)], rows)


def _place_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    end = a["start"] + len(i[0])
    o[0][: a["start"]].fill(0)
    k.copy(o[0][a["start"] : end], i[0])
    o[0][end:].fill(0)


def _repeat_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for (y,) in by_lane(a, o[0]):
        k.copy(y, i[0])


def _concat_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    start = 0
    for rows in i:
        k.copy(o[0][start : start + len(rows)], rows)
        start += len(rows)


def _take_labelled(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    """Copy the first row that has a label.

    Raises:
        WorkerError: None has one.
    """
    row = int(np.argmax(i[1] != IGNORED))
    if i[1][row] == IGNORED:
        raise WorkerError("a window without a label has nothing to classify")
    np.copyto(o[0], i[0][row : row + 1])
    o[1][0] = i[1][row]


ROW_KERNELS: dict[str, Kernel] = {
    "take_rows": _take_rows,
    "put_rows": _put_rows,
    "place_rows": _place_rows,
    "repeat_rows": _repeat_rows,
    "concat_rows": _concat_rows,
    "take_labelled": _take_labelled,
}
