"""Building programs node by node: fresh names, inferred types."""

from collections.abc import Mapping, Sequence

from memsim.ir.op import OpError
from memsim.ir.ops import OPS
from memsim.ir.program import Attr, Node, Program, Repeat, Space, TensorType, Value


class Builder:
    """Collects values and nodes, then returns a :class:`Program`.

    ``part`` and ``phase`` are stamped on every node emitted while they are set, and so are the attributes ``turn``.
    """

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.inputs: list[str] = []
        self.nodes: list[Node] = []
        self.part = ""
        self.phase = "forward"
        self.turn: dict[str, Attr] = {}

    def declare(self, name: str, kind: TensorType, space: Space = Space.ARENA, source: str = "") -> str:
        """Add a value without a definition yet; the next node that outputs it defines it."""
        if name in self.values:
            raise OpError(f"{name} is defined twice")
        self.values[name] = Value(name, kind, space, source)
        return name

    def input(self, name: str, kind: TensorType, space: Space = Space.ARENA, source: str = "") -> str:
        """Add a program input."""
        self.inputs.append(self.declare(name, kind, space, source))
        return name

    def emit(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Attr) -> tuple[str, ...]:
        """Append a node whose output types follow from its inputs; return the output names."""
        rule = OPS[op].shape
        if rule is None:
            raise OpError(f"the outputs of {op} must be declared: use emit_declared")
        try:
            types = rule([self.values[name].type for name in inputs], attrs)
        except (OpError, ValueError, IndexError, KeyError) as error:
            raise OpError(f"{op} -> {', '.join(outputs)}: {error}") from error
        for name, kind in zip(outputs, types, strict=True):
            self.declare(name, kind)
        return self.emit_declared(op, inputs, outputs, attrs)

    def emit_declared(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], attrs: Mapping[str, Attr] | None = None
    ) -> tuple[str, ...]:
        """Append a node whose outputs were declared before; return their names."""
        stamped = dict(attrs or {}) | self.turn
        self.nodes.append(Node(op, tuple(inputs), tuple(outputs), stamped, self.part, self.phase))
        return tuple(outputs)

    def build(self, outputs: Sequence[str], repeat: Repeat | None = None) -> Program:
        """Return the program; values that nothing defines or reads are left out."""
        used = {name for node in self.nodes for name in (*node.inputs, *node.outputs)} | set(self.inputs) | set(outputs)
        values = {name: value for name, value in self.values.items() if name in used}
        return Program(values, tuple(self.inputs), tuple(outputs), tuple(self.nodes), repeat)
