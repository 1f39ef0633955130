"""Updates of what is trained, from its gradients."""

from collections.abc import Sequence

from memsim.ir.op import Attrs, OpTable, integer, require
from memsim.ir.program import TensorType
from memsim.ir.work import ELEMENTWISE

OPTIMIZER_OPS = OpTable()


@OPTIMIZER_OPS.op("sgd", work=ELEMENTWISE)
@OPTIMIZER_OPS.op("momentum", work=ELEMENTWISE)
@OPTIMIZER_OPS.op("adamw", work=ELEMENTWISE)
def _update(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """New parameters (and state), from (step f64 [1], n parameters, n gradients, state if the optimizer has any)."""
    n = integer(attrs, "n_tensors")
    require(len(i) - 1 - 2 * n in (0, 1) and list(i[1 : n + 1]) == list(i[n + 1 : 2 * n + 1]), i)
    return [*i[1 : n + 1], *i[2 * n + 1 :]]
