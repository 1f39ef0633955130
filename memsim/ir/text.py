"""Programs as text, for people and for golden tests."""

from memsim.ir.program import Node, Program, Space


def format_node(program: Program, node: Node) -> str:
    """Return one line: ``y:f32[4,8] = linear_q4(x, w.q, w.scales) {n_rows=8}``."""
    outputs = ", ".join(_definition(program, name) for name in node.outputs)
    attrs = " {" + ", ".join(f"{key}={value}" for key, value in node.attrs.items()) + "}" if node.attrs else ""
    return f"{outputs}{' = ' if outputs else ''}{node.op}({', '.join(node.inputs)}){attrs}"


def _definition(program: Program, name: str) -> str:
    value = program.values[name]
    space = "" if value.space is Space.ARENA else f"@{value.space}"
    alias = f" over {value.alias_of}" if value.alias_of else ""
    return f"{name}:{value.type}{space}{alias}"


def format_program(program: Program) -> str:
    """Return the whole program, one node a line, inputs first."""
    lines = [f"input {_definition(program, name)}" for name in program.inputs]
    lines += [format_node(program, node) for node in program.nodes]
    return "\n".join([*lines, f"output {', '.join(program.outputs)}"])
