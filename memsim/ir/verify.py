"""What a legal program is. Run on every program that is lowered or loaded from a file."""

from memsim.ir.op import OpError
from memsim.ir.ops import OPS
from memsim.ir.program import Program, Space


def verify(program: Program) -> None:
    """Check ``program``: known ops, single assignment, definition before use, types, in-place safety, the loop.

    Raises:
        OpError: The first rule that is broken, with the node.
    """
    defined = set(program.inputs)
    for index, node in enumerate(program.nodes):
        if node.op not in OPS:
            raise OpError(f"{_where(program, index)}: unknown op")
        for name in (*node.inputs, *node.outputs):
            if name not in program.values:
                raise OpError(f"{_where(program, index)}: {name} is not declared")
        for name in node.inputs:
            if name not in defined:
                raise OpError(f"{_where(program, index)}: {name} is read before it is defined")
        for name in node.outputs:
            if name in defined:
                raise OpError(f"{_where(program, index)}: {name} is defined twice")
            defined.add(name)
        _check_types(program, index)
    missing = [name for name in program.outputs if name not in defined]
    if missing:
        raise OpError(f"outputs never defined: {', '.join(missing)}")
    _check_aliases(program)
    _check_repeat(program)


def _where(program: Program, index: int) -> str:
    return f"node {index} ({program.nodes[index]})"


def _check_types(program: Program, index: int) -> None:
    node = program.nodes[index]
    rule = OPS[node.op].shape
    if rule is None:
        return
    try:
        expected = rule([program.values[name].type for name in node.inputs], node.attrs)
    except (OpError, ValueError, IndexError, KeyError) as error:
        raise OpError(f"{_where(program, index)}: {error}") from error
    actual = [program.values[name].type for name in node.outputs]
    if actual != expected:
        are, due = (", ".join(map(str, types)) for types in (actual, expected))
        raise OpError(f"{_where(program, index)}: outputs are {are}, not {due}")


def _check_aliases(program: Program) -> None:
    """A value whose storage is overwritten must not be read after that, nor be an output."""
    overwritten: dict[str, int] = {}
    for index, node in enumerate(program.nodes):
        for name in node.inputs:
            if name in overwritten:
                raise OpError(f"{_where(program, index)}: {name} was overwritten by node {overwritten[name]}")
        for name in node.outputs:
            value = program.values[name]
            if not value.alias_of:
                continue
            target = program.values.get(value.alias_of)
            if target is None or value.alias_of not in node.inputs:
                raise OpError(
                    f"{_where(program, index)}: {name} overwrites {value.alias_of}, which the node does not read"
                )
            if target.type != value.type or target.space != value.space:
                raise OpError(f"{_where(program, index)}: {name} and {value.alias_of} differ in type or space")
            overwritten[value.alias_of] = index
    for name in program.outputs:
        if name in overwritten:
            raise OpError(f"output {name} was overwritten by node {overwritten[name]}")


def _check_repeat(program: Program) -> None:
    """What the loop body defines in the arena stays in the body, unless it updates storage from before it."""
    repeat = program.repeat
    if repeat is None:
        return
    if not 0 <= repeat.start <= repeat.stop <= len(program.nodes) or repeat.count < 1:
        raise OpError(f"the repeated section {repeat} does not fit {len(program.nodes)} nodes")
    if repeat.count == 1:
        return
    inside = {name for node in program.nodes[repeat.start : repeat.stop] for name in node.outputs}
    for index in range(repeat.stop, len(program.nodes)):
        for name in program.nodes[index].inputs:
            value = program.values[name]
            if name in inside and value.space is Space.ARENA and program.root(name) in inside:
                raise OpError(f"{_where(program, index)}: {name} holds the last micro-batch only")
