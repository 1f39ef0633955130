"""Writing outputs over inputs that nothing reads any more, where the op allows it."""

from dataclasses import replace

from memsim.ir.ops import OPS
from memsim.ir.program import Program, Space, Value


def reuse_in_place(program: Program) -> Program:
    """Return ``program`` with arena outputs aliased to dead arena inputs.

    Only the op table's pairs (``Op.reusable``) are considered, first match wins. Program inputs and values that a
    repeated section reads from before it are never overwritten: the next micro-batch needs them again.
    """
    last_read = {name: index for index, node in enumerate(program.nodes) for name in node.inputs}
    born = {name: index for index, node in enumerate(program.nodes) for name in node.outputs}
    keep = set(program.outputs) | set(program.inputs)
    values: dict[str, Value] = dict(program.values)
    for index, node in enumerate(program.nodes):
        # Aliases that the lowering demanded count as taken.
        taken = {values[name].alias_of for name in node.outputs}
        for out_position, in_position in OPS[node.op].reusable(node.attrs):
            if in_position >= len(node.inputs) or out_position >= len(node.outputs):
                continue
            out, old = values[node.outputs[out_position]], values[node.inputs[in_position]]
            fits = out.type == old.type and out.space is old.space is Space.ARENA
            dead = last_read[old.name] == index and old.name not in keep and old.name not in taken
            if fits and dead and not out.alias_of and not _outlives_loop(program, born, old.name, index):
                values[out.name] = replace(out, alias_of=old.name)
                taken.add(old.name)
    return replace(program, values=values)


def _outlives_loop(program: Program, born: dict[str, int], name: str, index: int) -> bool:
    repeat = program.repeat
    if repeat is None or repeat.count == 1:
        return False
    return repeat.start <= index < repeat.stop and born.get(name, -1) < repeat.start
