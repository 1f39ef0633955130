"""The arithmetic of each node, and the bytes it moves through memory: what a time model needs to know of a step.

Bytes that a node moves to and from files are in ``traffic``. How an op is counted stands in its row
(``memsim.ir.ops``).
"""

from dataclasses import dataclass

from memsim.ir.ops import OPS
from memsim.ir.ops.product import matrix_size
from memsim.ir.program import Node, Program
from memsim.ir.work import Kind


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a node, or of several.

    Attributes:
        matmul_flops: Of matrix products with weights or adapters, packed or not; a multiply-add is two.
        attention_flops: Of the products inside attention, masked halves left out.
        unpacked_weights: INT4 weights turned into floats.
        moved_bytes: Read from and written to memory if every operand passes once: the roofline's bytes.
    """

    matmul_flops: int = 0
    attention_flops: int = 0
    unpacked_weights: int = 0
    moved_bytes: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.matmul_flops + other.matmul_flops,
            self.attention_flops + other.attention_flops,
            self.unpacked_weights + other.unpacked_weights,
            self.moved_bytes + other.moved_bytes,
        )

    @property
    def flops(self) -> int:
        """All floating-point operations that are counted; element-wise ones are not."""
        return self.matmul_flops + self.attention_flops


def node_kind(node: Node) -> Kind:
    """Return what bounds ``node``."""
    return OPS[node.op].work.kind


def node_work(program: Program, node: Node) -> Work:
    """Return the work of one execution of ``node``."""
    row = OPS[node.op].work
    inputs = [program.values[name].type for name in node.inputs]
    outputs = [program.values[name].type for name in node.outputs]
    flops = row.flops(inputs, node.attrs) if row.flops else 0
    attends = row.kind is Kind.ATTENTION
    return Work(
        matmul_flops=0 if attends else flops,
        attention_flops=flops if attends else 0,
        unpacked_weights=row.passes(inputs, node.attrs) * matrix_size(node.attrs) if row.passes else 0,
        moved_bytes=row.moves(inputs, outputs) if row.moves else sum(t.n_bytes for t in (*inputs, *outputs)),
    )


def step_work(program: Program) -> Work:
    """Return the work of one whole step, every micro-batch included."""
    each = [node_work(program, node) for node in program.nodes]
    total = Work()
    for index in program.order():
        total += each[index]
    return total
