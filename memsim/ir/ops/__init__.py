"""The ops: what each reads and defines, as one shape rule an op, and which input an output may overwrite.

Each family of ops has a file with its own table; ``memsim.ir.op`` says what a row is.
"""

from collections.abc import Sequence

from memsim.ir.op import Attrs, Op, integer, require
from memsim.ir.ops.attention import ATTENTION_OPS
from memsim.ir.ops.elementwise import ELEMENTWISE_OPS
from memsim.ir.ops.loss import LOSS_OPS
from memsim.ir.ops.norm import NORM_OPS
from memsim.ir.ops.product import PRODUCT_OPS
from memsim.ir.ops.row import ROW_OPS
from memsim.ir.ops.tangent import TANGENT_OPS
from memsim.ir.ops.tile import TILE_OPS
from memsim.ir.ops.zeroth_order import ZEROTH_ORDER_OPS
from memsim.ir.program import TensorType


def _update(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """New parameters (and state), from (step f64 [1], n parameters, n gradients, state if the optimizer has any)."""
    n = integer(attrs, "n_tensors")
    require(len(i) - 1 - 2 * n in (0, 1) and list(i[1 : n + 1]) == list(i[n + 1 : 2 * n + 1]), i)
    return [*i[1 : n + 1], *i[2 * n + 1 :]]


OPTIMIZER_OPS = {name: Op(name, _update) for name in ("sgd", "momentum", "adamw")}

STORAGE_OPS = {
    name: Op(name, None)
    for name in (
        *("page_in", "prefetch", "evict", "spill", "restore", "load", "load_rows", "store", "zero"),
        *("next_batch", "emit_loss", "emit_estimate", "balloon"),
    )
}
"""Storage and host ops: their outputs are declared by whoever emits them.

``balloon`` is the tests' rogue allocation: it touches ``n_bytes`` that no plan knows of.
"""

OPS: dict[str, Op] = (
    PRODUCT_OPS
    | NORM_OPS
    | ATTENTION_OPS
    | ELEMENTWISE_OPS
    | ROW_OPS
    | LOSS_OPS
    | OPTIMIZER_OPS
    | ZEROTH_ORDER_OPS
    | TANGENT_OPS
    | TILE_OPS
    | STORAGE_OPS
)
