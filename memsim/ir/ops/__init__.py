"""The ops: one row each, in the file of its family; ``memsim.ir.op`` says what a row is."""

from collections.abc import Sequence

from memsim.ir.op import Effect, Op, OpError, OpTable
from memsim.ir.ops.attention import ATTENTION_OPS
from memsim.ir.ops.elementwise import ELEMENTWISE_OPS
from memsim.ir.ops.loss import LOSS_OPS
from memsim.ir.ops.norm import NORM_OPS
from memsim.ir.ops.optimizer import OPTIMIZER_OPS
from memsim.ir.ops.product import PRODUCT_OPS
from memsim.ir.ops.row import ROW_OPS
from memsim.ir.ops.storage import STORAGE_OPS
from memsim.ir.ops.tangent import TANGENT_OPS
from memsim.ir.ops.tile import TILE_OPS
from memsim.ir.ops.zeroth_order import ZEROTH_ORDER_OPS
from memsim.ir.program import Node

FAMILIES = (
    PRODUCT_OPS,
    NORM_OPS,
    ATTENTION_OPS,
    ELEMENTWISE_OPS,
    ROW_OPS,
    LOSS_OPS,
    OPTIMIZER_OPS,
    ZEROTH_ORDER_OPS,
    TANGENT_OPS,
    TILE_OPS,
    STORAGE_OPS,
)


def joined(families: Sequence[OpTable]) -> dict[str, Op]:
    """Return the rows of all families.

    Raises:
        OpError: Two rows have one name, or a row has a gradient or a tangent and no shape to derive it from.
    """
    ops: dict[str, Op] = {}
    for family in families:
        for name, row in family.items():
            if name in ops:
                raise OpError(f"{name} has two rows")
            if row.shape is None and (row.gradient or row.tangent):
                raise OpError(f"{name} has a derivative, so it needs a shape rule")
            ops[name] = row
    return ops


OPS = joined(FAMILIES)


def effect_of(node: Node) -> Effect:
    """Return what ``node`` does to storage."""
    return OPS[node.op].effect
