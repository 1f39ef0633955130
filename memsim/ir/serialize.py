"""Step programs as files: what is planned once is loaded by the worker.

JSON lines, so that neither side ever holds the whole text: a header, then one line a value, then one line a node;
nodes name values by number.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.files import atomic_write
from memsim.ir.op import OpError
from memsim.ir.ops import OPS
from memsim.ir.program import ITEM_BYTES, Node, Program, Repeat, Space, TensorType, Value
from memsim.ir.verify import verify
from memsim.printable import printable
from memsim.reading import open_regular

SCHEMA = "memsim.program/1"
_MAX_LINE_BYTES = 1 << 20
_MAX_ITEMS = 4_000_000
_MAX_DIM = 1 << 40
_LONGEST_PROBLEM = 200


@dataclass(frozen=True, slots=True)
class PlacedProgram:
    """A step program with its arena offsets.

    Attributes:
        model_hash: The pack that the program was lowered for.
        offsets: Arena offset of each storage, in bytes.
    """

    program: Program
    model_hash: str
    offsets: Mapping[str, int]
    arena_bytes: int


def save_program(placed: PlacedProgram, path: Path) -> None:
    """Write ``placed`` to ``path`` atomically."""
    with atomic_write(path) as file:
        for line in _lines(placed):
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")


def _lines(placed: PlacedProgram) -> Iterator[Any]:
    program = placed.program
    number = {name: index for index, name in enumerate(program.values)}
    repeat = program.repeat
    yield {
        "schema": SCHEMA,
        "model_hash": placed.model_hash,
        "arena_bytes": placed.arena_bytes,
        "n_values": len(program.values),
        "n_nodes": len(program.nodes),
        "inputs": [number[name] for name in program.inputs],
        "outputs": [number[name] for name in program.outputs],
        "repeat": None if repeat is None else [repeat.start, repeat.stop, repeat.count],
    }
    for name, value in program.values.items():
        alias = number[value.alias_of] if value.alias_of else -1
        offset = placed.offsets.get(name, -1)
        yield [name, value.type.dtype, list(value.type.shape), value.space, value.source, alias, offset]
    for node in program.nodes:
        inputs, outputs = ([number[name] for name in names] for names in (node.inputs, node.outputs))
        yield [node.op, inputs, outputs, dict(node.attrs), node.part, node.phase]


def load_program(path: Path) -> PlacedProgram:
    """Read a program file, untrusted: bounded, verified, every offset inside the arena.

    Raises:
        InputError: The file is not a program of this version, or it is damaged.
    """
    try:
        with open_regular(path) as file:
            return _load(_read_lines(file))
    except OSError as error:
        raise InputError(f"cannot read the program {path}: {error.strerror}") from error
    except (OpError, ValueError, TypeError, KeyError, IndexError, StopIteration, RecursionError) as error:
        problem = printable(error)[:_LONGEST_PROBLEM] or type(error).__name__
        raise InputError(f"{path} is not a valid step program: {problem}") from error


def _read_lines(file: Any) -> Iterator[Any]:
    while line := file.readline(_MAX_LINE_BYTES + 1):
        if len(line) > _MAX_LINE_BYTES:
            raise ValueError("a line is too long")
        yield json.loads(line)


def _load(lines: Iterator[Any]) -> PlacedProgram:
    header = next(lines)
    if header["schema"] != SCHEMA:
        raise ValueError(f"schema is {header['schema']!r}, not {SCHEMA!r}")
    n_values, n_nodes, arena_bytes = (_count(header[key]) for key in ("n_values", "n_nodes", "arena_bytes"))
    if max(n_values, n_nodes) > _MAX_ITEMS:
        raise ValueError(f"{n_values} values and {n_nodes} nodes are too many")
    if not n_nodes:
        raise ValueError("it has no node")
    rows = list(islice(lines, n_values))
    if len(rows) < n_values:
        raise ValueError(f"it ends after {len(rows)} of {n_values} values")
    values, offsets = _values(rows, arena_bytes)
    names = list(values)
    ops = {op: op for op in OPS}
    nodes = tuple(_node(line, names, ops) for line in islice(lines, n_nodes))
    if len(nodes) < n_nodes:
        raise ValueError(f"it ends after {len(nodes)} of {n_nodes} nodes")
    if next(lines, None) is not None:
        raise ValueError(f"it goes on after its {n_nodes} nodes")
    repeat = None
    if header["repeat"] is not None:
        start, stop, count = map(_count, header["repeat"])
        repeat = Repeat(start, stop, count)
    inputs, outputs = (tuple(names[_count(i)] for i in header[key]) for key in ("inputs", "outputs"))
    program = Program(values, inputs, outputs, nodes, repeat)
    verify(program)
    return PlacedProgram(program, _text(header["model_hash"]), offsets, arena_bytes)


def _values(rows: list[Any], arena_bytes: int) -> tuple[dict[str, Value], dict[str, int]]:
    names = [row[0] for row in rows]
    values: dict[str, Value] = {}
    offsets: dict[str, int] = {}
    types: dict[tuple[Any, ...], TensorType] = {}
    for index, (name, dtype, shape, space, source, alias, offset) in enumerate(rows):
        if not isinstance(name, str) or not name or not isinstance(source, str) or name in values:
            raise ValueError(f"value {index} is malformed")
        if dtype not in ITEM_BYTES:
            raise ValueError(f"value {index} is malformed")
        key = (dtype, *shape)
        kind = types.setdefault(key, TensorType(tuple(_count(size) for size in shape), dtype))
        if _place(alias) >= index:
            raise ValueError(f"value {name} overwrites a later one")
        values[name] = Value(name, kind, Space(space), source, names[alias] if alias >= 0 else "")
        if _place(offset) >= 0:
            if offset + kind.n_bytes > arena_bytes:
                raise ValueError(f"value {name} lies outside the arena")
            offsets[name] = offset
    unplaced = [v.name for v in values.values() if v.space is Space.ARENA and not v.alias_of and v.name not in offsets]
    if unplaced:
        raise ValueError(f"value {unplaced[0]} has no place in the arena")
    return values, offsets


def _node(row: Any, names: list[str], ops: Mapping[str, str]) -> Node:
    op, inputs, outputs, attrs, part, phase = row
    if not isinstance(attrs, dict) or not all(map(_is_attribute, attrs.values())):
        raise ValueError("a node has malformed attributes")
    # Interned op names: thousands of nodes, some thirty ops.
    reads, defines = (tuple(names[_count(index)] for index in indices) for indices in (inputs, outputs))
    return Node(ops[op], reads, defines, attrs, _text(part), _text(phase))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _place(value: Any) -> int:
    """Return a count, or -1 for none."""
    return -1 if type(value) is int and value == -1 else _count(value)


def _is_attribute(value: Any) -> bool:
    return isinstance(value, int | str) or (isinstance(value, float) and isfinite(value))


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_DIM:
        raise ValueError(f"{value!r} is not a count")
    return value
