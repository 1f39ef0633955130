"""Bytes that each node moves: read from weight files, unpacked, spilled, written to disk."""

from collections.abc import Iterable
from dataclasses import dataclass

from memsim.ir.op import Effect
from memsim.ir.ops import effect_of
from memsim.ir.program import Node, Program, Space


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes moved by a node, or by several.

    Attributes:
        paged_in_bytes: Weight bytes asked for by page-ins, or read in bf16 where they are trained.
        unpacked_bytes: Packed bytes (nibbles and scales) that were turned into floats.
        spilled_bytes: Activation bytes written to the scratch file.
        written_bytes: All bytes written to disk: spills and optimizer state.
    """

    paged_in_bytes: int = 0
    unpacked_bytes: int = 0
    spilled_bytes: int = 0
    written_bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.paged_in_bytes + other.paged_in_bytes,
            self.unpacked_bytes + other.unpacked_bytes,
            self.spilled_bytes + other.spilled_bytes,
            self.written_bytes + other.written_bytes,
        )

    @property
    def total_bytes(self) -> int:
        """Bytes read from or written to files, plus bytes unpacked; a node does only one of these."""
        return self.paged_in_bytes + self.unpacked_bytes + self.written_bytes


def node_traffic(program: Program, node: Node) -> Traffic:
    """Return what one execution of ``node`` moves."""
    scratch = sum(program.values[name].n_bytes for name in node.outputs if program.values[name].space is Space.SCRATCH)
    effect = effect_of(node)
    if Effect.PAGES_IN in effect:
        return Traffic(paged_in_bytes=int(node.attrs["reads_bytes"]))
    if effect & (Effect.LOADS | Effect.GATHERS):  # matrices that are trained are weights all the same
        weights = [program.values[name] for name in node.outputs if program.values[name].type.dtype == "bf16"]
        return Traffic(paged_in_bytes=sum(value.n_bytes for value in weights))
    if Effect.SPILLS in effect:
        return Traffic(spilled_bytes=scratch, written_bytes=scratch)
    if node.op == "embedding_q4":
        ids, q, scales = (program.values[name] for name in node.inputs)
        # Rows are gathered one by one; each panel of q holds 16 of them.
        rows = q.type.shape[0] * q.type.shape[2]
        return Traffic(unpacked_bytes=ids.type.shape[0] * (q.n_bytes + scales.n_bytes) // rows)
    if "group_size" in node.attrs:
        packed = (program.values[name] for name in node.inputs if program.values[name].space is Space.MAPPED)
        return Traffic(unpacked_bytes=sum(value.n_bytes for value in packed if value.type.dtype in ("u32", "f16")))
    return Traffic(written_bytes=scratch)


def step_traffic(program: Program, executed: Iterable[int] | None = None) -> Traffic:
    """Return the sum over the nodes ``executed`` (one whole step by default)."""
    each = [node_traffic(program, node) for node in program.nodes]
    total = Traffic()
    for index in program.order() if executed is None else executed:
        total += each[index]
    return total
