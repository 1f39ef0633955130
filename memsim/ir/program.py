"""Values, nodes and programs.

A program is a flat list of nodes in single-assignment form: each value is defined once, by a program input or by
one node. It is plain data; what an op means is said by tables elsewhere (``opset`` for shapes, ``gradients`` for
derivatives, ``execution.kernels`` for execution).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod

ITEM_BYTES = {"f32": 4, "u32": 4, "f16": 2, "bf16": 2, "f64": 8}

Attr = int | float | str | bool


class Space(StrEnum):
    """Where a value's bytes live.

    ARENA: placed by the planner in one block of anonymous memory.
    PINNED: anonymous memory held all step (adapters, constants, the batch).
    MAPPED: read-only file pages (weights), in use from ``page_in`` to ``evict``.
    SCRATCH: writable file pages (spilled block inputs, optimizer state), in memory only during the node that reads
        or writes them.
    """

    ARENA = "arena"
    PINNED = "pinned"
    MAPPED = "mapped"
    SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and element type of a value."""

    shape: tuple[int, ...]
    dtype: str = "f32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Size in bytes."""
        return self.size * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a program.

    Attributes:
        source: For MAPPED values ``part/tensor``; for PINNED and SCRATCH values the buffer's name. Values with the
            same source share storage.
        alias_of: The value whose storage this one overwrites (in-place ops); empty for storage of its own.
    """

    name: str
    type: TensorType
    space: Space = Space.ARENA
    source: str = ""
    alias_of: str = ""

    @property
    def n_bytes(self) -> int:
        """Size in bytes."""
        return self.type.n_bytes


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: reads ``inputs``, defines ``outputs``.

    Attributes:
        part: The part of the model it belongs to (``block_007``, ``embed``, ``head``), empty for none.
        phase: ``forward``, ``recompute``, ``backward`` or ``update``.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    part: str = ""
    phase: str = "forward"

    def __str__(self) -> str:
        return f"{self.op}, {self.part or 'step'} {self.phase}"


@dataclass(frozen=True, slots=True)
class Repeat:
    """Nodes ``start`` to ``stop`` (exclusive) run ``count`` times: one micro-batch each time."""

    start: int
    stop: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Program:
    """Nodes in execution order, and every value they read or define.

    Attributes:
        inputs: Values bound before the program runs.
        outputs: Values that must survive to the end.
        repeat: The micro-batch loop of a step program; None runs every node once.
    """

    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    repeat: Repeat | None = None

    def order(self, step: int = 0) -> Iterator[int]:
        """Yield node indices in the order in which ``step`` executes them, the repeated section as often as it runs.

        A node with the attributes ``turns`` and ``turn`` has its turn in every ``turns``-th step, and is skipped in all
        others: what it would overwrite stays.
        """
        repeat = self.repeat or Repeat(0, 0)
        head, body, tail = range(repeat.start), range(repeat.start, repeat.stop), range(repeat.stop, len(self.nodes))
        for section in (head, *[body] * repeat.count, tail):
            for index in section:
                attrs = self.nodes[index].attrs
                if "turns" not in attrs or step % int(attrs["turns"]) == attrs["turn"]:
                    yield index

    @property
    def turns(self) -> int:
        """After how many steps the same nodes are executed again."""
        return max((int(node.attrs.get("turns", 1)) for node in self.nodes), default=1)

    def root(self, name: str) -> str:
        """Return the value that owns the storage of ``name``."""
        while self.values[name].alias_of:
            name = self.values[name].alias_of
        return name

    def state(self) -> tuple[str, ...]:
        """Return the inputs that some node overwrites: what a run of the program reads of the run before it."""
        written = {self.root(name) for node in self.nodes for name in node.outputs}
        return tuple(name for name in self.inputs if name in written)
