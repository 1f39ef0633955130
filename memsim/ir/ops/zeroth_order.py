"""Ops of zeroth-order steps: perturbed copies, estimates from losses, updates along noise that is drawn again."""

from collections.abc import Sequence

from memsim.ir.op import Attrs, OpTable, integer, require
from memsim.ir.program import TensorType
from memsim.ir.work import ELEMENTWISE, STORAGE

ZEROTH_ORDER_OPS = OpTable()


def lane_slot(rank: int) -> int:
    """Return the ranks that each of several lanes takes in stacked adapters; those beyond its own are zero.

    Products reduce 32 ranks at a time, even and odd ones apart: a lane that neither straddles such a step nor begins
    at an odd rank has the sums, to the bit, that it has alone.
    """
    return -(-rank // 32) * 32 if rank > 32 else max(2, 1 << (rank - 1).bit_length())


@ZEROTH_ORDER_OPS.op("perturb", work=ELEMENTWISE)
def _perturb(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The tensors of each lane, w + s z: (seed u32 [2], [scale f64 [1]], n tensors) -> n tensors and a workspace.

    ``signs`` says what each lane gets: ``+3,-3`` the noise of direction 3 times ``eps`` (or the scale), added and
    subtracted; ``.`` nothing; ``=3`` is that noise itself, without w. ``axes`` has a digit for each tensor: along that
    axis the lanes are stacked, each in ``lane_slot`` of it. A single lane is not padded.
    """
    lanes, axes = str(attrs["signs"]).split(","), str(attrs["axes"])
    tensors = i[-len(axes) :]
    require(i[0] == TensorType((2,), "u32") and len(i) - len(axes) in (1, 2), i)
    stacked = []
    for kind, axis in zip(tensors, map(int, axes), strict=True):
        shape = list(kind.shape)
        shape[axis] = shape[axis] if len(lanes) == 1 else len(lanes) * lane_slot(shape[axis])
        stacked.append(TensorType(tuple(shape)))
    return [*stacked, TensorType((max(kind.n_bytes for kind in tensors) // 4,))]


@ZEROTH_ORDER_OPS.op("estimate", work=STORAGE)
def _estimate(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Projected gradients f64 [directions] from the statistics f64 [3 lanes] of perturbed losses.

    ``kind`` is that of ``schedules.zeroth_order.Method.estimate``; several inputs are the lanes of several streams.
    """
    directions = integer(attrs, "directions")
    lanes = 2 * directions if attrs["kind"] == "central" else directions + 1
    require({kind.dtype for kind in i} == {"f64"} and sum(kind.shape[0] for kind in i) == 3 * lanes, i)
    return [TensorType((directions,), "f64")]


@ZEROTH_ORDER_OPS.op("accept", work=STORAGE)
def _accept(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rho f64 [1] or its opposite or 0: which of w - lr g, w + lr g and w has the lowest loss.

    From (statistics whose first lane is w, those of the two candidates f64 [6], rho).
    """
    require(i[1].shape == (6,) and i[2] == TensorType((1,), "f64"), i)
    return [i[2]]


@ZEROTH_ORDER_OPS.op("zo_update", work=ELEMENTWISE)
def _zo_update(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """New tensors (and state) and a workspace, from (step f64 [1], seed u32 [2], rho f64 [], n tensors, [state]).

    The gradient is the mean of rho_i z_i over ``directions`` directions, the estimate of the first of which is
    ``rho_at``; z is drawn again.
    """
    n = integer(attrs, "n_tensors")
    tensors = i[3 : 3 + n]
    require(i[1] == TensorType((2,), "u32") and i[2].dtype == "f64" and len(i) - 3 - n in (0, 1), i)
    require(integer(attrs, "rho_at") + integer(attrs, "directions") <= i[2].shape[0], i)
    return [*tensors, *i[3 + n :], TensorType((max(kind.n_bytes for kind in tensors) // 4,))]
