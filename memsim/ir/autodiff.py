"""Deriving the backward of a block program, one rule per op."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memsim.ir.builder import Builder
from memsim.ir.op import OpError
from memsim.ir.ops import OPS
from memsim.ir.program import Attr, Node, Program, Value


@dataclass(frozen=True, slots=True)
class BlockBackward:
    """The backward of one block program.

    Attributes:
        values: The gradients, by name; forward values keep their types in the forward program.
        nodes: Backward nodes in execution order. They read forward values and gradients by name.
        seed: The name of the gradient of the block's output, an input; empty when the block ends in the loss.
        gradients: Forward value -> the value holding its gradient, for everything that was asked for.
        residuals: Forward values (block input included) that the nodes read, weights and adapters left out.
    """

    values: Mapping[str, Value]
    nodes: tuple[Node, ...]
    seed: str
    gradients: Mapping[str, str]
    residuals: tuple[str, ...]


class _Derivation:
    """Implements ``gradients.Backward`` over a builder."""

    def __init__(self, forward: Program) -> None:
        self.builder = Builder()
        self.builder.phase = "backward"
        self.builder.values.update(forward.values)
        self.grads: dict[str, str] = {}

    def fresh(self, wrt: str, taken: Sequence[str] = ()) -> str:
        name, version = f"d.{wrt}", 1
        while name in self.builder.values or name in taken:
            version += 1
            name = f"d{version}.{wrt}"
        return name

    def grad(self, name: str) -> str:
        return self.grads[name]

    def emit(self, node: Node, op: str, inputs: list[str], *wrt: str) -> list[str]:
        outputs: list[str] = []
        for name in wrt:
            outputs.append(self.fresh(name, outputs))
        self.builder.emit(op, inputs, outputs, **node.attrs)
        self.grads.update({name: out for name, out in zip(wrt, outputs, strict=True) if name not in self.grads})
        return outputs

    def contribute(self, node: Node, op: str, inputs: list[str], wrt: str, *work: str, **attrs: Attr) -> None:
        so_far = [self.grads[wrt]] if wrt in self.grads else []
        outputs = [self.fresh(name) for name in (wrt, *work)]
        self.grads[wrt] = self.builder.emit(op, [*inputs, *so_far], outputs, **(attrs or node.attrs))[0]

    def n_rows(self, name: str) -> int:
        return self.builder.values[name].type.shape[0]

    def add(self, wrt: str, gradient: str) -> None:
        so_far = self.grads.get(wrt)
        if so_far is None or so_far == gradient:
            self.grads[wrt] = gradient
            return
        (self.grads[wrt],) = self.builder.emit("add", [so_far, gradient], [self.fresh(wrt)])


def differentiate(forward: Program, output: str, wrt: tuple[str, ...], seed: bool = True) -> BlockBackward:
    """Derive the gradients of ``output`` with respect to ``wrt``.

    Args:
        forward: A block program.
        output: The value whose gradient is given (``seed``), or the loss.
        wrt: Program inputs whose gradients are wanted; everything else is dead code and removed.
        seed: Whether the gradient of ``output`` arrives as an input; False when ``output`` is the loss itself.

    Raises:
        OpError: An op on the path has no backward rule.
    """
    derivation = _Derivation(forward)
    seed_name = ""
    if seed:
        seed_name = derivation.builder.input(f"d.{output}", forward.values[output].type)
        derivation.grads[output] = seed_name
    active = _depend_on(forward, wrt)
    for node in reversed(forward.nodes):
        if output not in node.outputs and not any(name in derivation.grads for name in node.outputs):
            continue
        if not any(name in active for name in node.outputs):
            continue
        rule = OPS[node.op].gradient
        if rule is None:
            raise OpError(f"{node.op} has no backward rule")
        derivation.builder.part = node.part
        rule(derivation, node)
    gradients = {name: derivation.grads[name] for name in wrt}
    nodes = eliminate_dead(tuple(derivation.builder.nodes), set(gradients.values()))
    frozen = set(forward.inputs[1:])
    read = {name for node in nodes for name in node.inputs}
    residuals = tuple(name for name in forward.values if name in read and name not in frozen)
    own = {name: value for name, value in derivation.builder.values.items() if name not in forward.values}
    return BlockBackward(own, nodes, seed_name, gradients, residuals)


def _depend_on(forward: Program, wrt: tuple[str, ...]) -> set[str]:
    """Return the values that depend on any of ``wrt``: no other needs a gradient, or has an op with a rule."""
    active = set(wrt)
    for node in forward.nodes:
        if not active.isdisjoint(node.inputs):
            active.update(node.outputs)
    return active


def eliminate_dead(nodes: tuple[Node, ...], wanted: set[str]) -> tuple[Node, ...]:
    """Return ``nodes`` without those that contribute nothing to ``wanted``."""
    live = set(wanted)
    kept: list[Node] = []
    for node in reversed(nodes):
        if any(name in live for name in node.outputs):
            live.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))
