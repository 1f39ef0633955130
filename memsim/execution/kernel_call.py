"""What the op tables of execution share: how a kernel is called, and how its operands are prepared."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from memsim.execution.storage.mapped_weights import Array

Attrs = Mapping[str, Any]
Kernel = Callable[[Sequence[Array], Sequence[Array], Attrs], None]
"""Called as kernel(outputs, inputs, attrs)."""

NO_BIAS = np.zeros(0, np.float32)
NO_BIAS.flags.writeable = False  # the kernels are compiled for mapped, read-only biases


def by_lane(a: Attrs, *arrays: Array) -> list[tuple[Array, ...]]:
    """Return, for each lane, its rows of ``arrays``."""
    lanes = a.get("lanes", 1)
    return list(zip(*(array.reshape(lanes, -1, array.shape[-1]) for array in arrays), strict=True))


def start_sum(out: Array, so_far: Sequence[Array]) -> bool:
    """Prepare an output that adds to an optional input; return whether there is one."""
    if so_far and so_far[0] is not out:
        np.copyto(out, so_far[0])
    return bool(so_far)
