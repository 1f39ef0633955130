"""Live ranges: from the node that defines a value's storage to the last node that touches it."""

from dataclasses import dataclass

from memsim.ir.program import Program, Space


@dataclass(frozen=True, slots=True)
class LiveRange:
    """Storage ``name`` is live from node ``first`` to node ``last``, both inclusive."""

    name: str
    first: int
    last: int
    n_bytes: int


def arena_ranges(program: Program) -> list[LiveRange]:
    """Return the live range of every arena storage, in order of definition.

    Values that alias share one range. Program inputs are live from the start, program outputs to the end. Storage that
    a repeated section uses but did not define is live to the section's end: the next micro-batch needs it again.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}

    def touch(name: str, index: int) -> None:
        if program.values[name].space is Space.ARENA:
            root = program.root(name)
            first.setdefault(root, index)
            last[root] = index

    for name in program.inputs:
        touch(name, 0)
    for index, node in enumerate(program.nodes):
        for name in (*node.inputs, *node.outputs):
            touch(name, index)
    for name in program.outputs:
        touch(name, len(program.nodes) - 1)
    repeat = program.repeat
    if repeat is not None and repeat.count > 1:
        for root, start in first.items():
            if start < repeat.start <= last[root] < repeat.stop:
                last[root] = repeat.stop - 1
    return [LiveRange(root, first[root], last[root], program.values[root].n_bytes) for root in first]
