"""Changing files by their structure: every key to every wrong type, lengths, offsets, duplicates, cuts, other things.

A mutation is (what it is called, what lies at the path then): bytes, or one of ``SPECIAL`` things that are no file.
"""

import copy
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from damage import damaged

Mutation = tuple[str, bytes | Callable[[Path], None]]


class Raw(str):
    """JSON or TOML that no value of Python's stands for."""

    __slots__ = ()


WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1.5, -0.5, 1e308, 5e-324, 9e8, 10**30, 2**31, 2**53 + 1, 2**63, 2**64),
    *(Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw("[" * 5000)),
    *("", "x", "x" * 5000, "a\nfake: fits", "\x1b[2J\u202e", "\0", "\ud800", "../../x", "/", "1", "nan"),
    *([], [[]], [0], [-1, 2**63], ["x"] * 3, {}, {"x": 1}, {"": None}),
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything in a parsed document, itself included."""
    yield at
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def _set(tree: Any, at: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """Return a copy of ``tree`` with ``change(container, key)`` made at a place."""
    box = [copy.deepcopy(tree)]
    container: Any = box
    keys = (0, *at)
    for key in keys[:-1]:
        container = container[key]
    change(container, keys[-1])
    return box[0]


def _replace(value: Any) -> Callable[[Any, Any], None]:
    def change(container: Any, key: Any) -> None:
        container[key] = value

    return change


def _remove(container: Any, key: Any) -> None:
    del container[key]


def _double(container: Any, key: Any) -> None:
    """Repeat an item; of an object, its key."""
    if isinstance(container, list):
        container.insert(key, container[key])
    else:
        container[Raw(json.dumps(key))] = container[key]


def _rename(container: Any, key: Any) -> None:
    if isinstance(container, list):
        container[key:] = reversed(container[key:])
    else:
        container[f"{key}\n\u202e"] = container.pop(key)


def _negate(container: Any, key: Any) -> None:
    value = container[key]
    container[key] = -value if isinstance(value, int | float) else value


def _nudge(container: Any, key: Any) -> None:
    value = container[key]
    container[key] = value + 1 if isinstance(value, int | float) else f"{value}x" if isinstance(value, str) else value


_SHAPES = {"removed": _remove, "doubled": _double, "renamed": _rename, "negated": _negate, "nudged": _nudge}


def tree_mutations(tree: Any, random: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Yield (name, changed document): every place to every wrong value, in an order that the seed decides, for ever."""
    every = list(places(tree))
    ways = [*((f"= {value!r:.20}", _replace(value)) for value in WRONG), *_SHAPES.items()]
    while True:
        # A turn takes each place once, with ways in turn: few mutations see every key, many see every type of each.
        for turn in random.permutation(len(ways)):
            for number in random.permutation(len(every)):
                at = every[number]
                name, change = ways[(turn + number) % len(ways)]
                if at or change not in _SHAPES.values():
                    yield f"{'/'.join(map(str, at))} {name}", _set(tree, at, change)


def json_text(tree: Any) -> str:
    """Return JSON as other programs might write it: with what ``Raw`` holds, and doubled keys."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, dict):
        pairs = (f"{key if isinstance(key, Raw) else json.dumps(key)}:{json_text(item)}" for key, item in tree.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(json_text, tree)) + "]"
    return str(tree) if isinstance(tree, int) and not isinstance(tree, bool) else json.dumps(tree)


def toml_text(tree: Any, top: bool = True) -> str:
    """Return TOML with inline tables."""
    if isinstance(tree, dict):
        pairs = [f"{json.dumps(str(key))} = {toml_text(item, False)}" for key, item in tree.items()]
        return "\n".join(pairs) + "\n" if top else "{ " + ", ".join(pairs) + " }"
    if isinstance(tree, list):
        return "[" + ", ".join(toml_text(item, False) for item in tree) + "]"
    return "nan" if tree is None else json_text(tree)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def json_mutations(data: bytes, random: np.random.Generator) -> Iterator[Mutation]:
    """Yield changed JSON."""
    for name, tree in tree_mutations(json.loads(data), random):
        yield name, _encoded(json_text(tree))


def toml_mutations(tree: Any, random: np.random.Generator) -> Iterator[Mutation]:
    """Yield changed TOML."""
    for name, changed in tree_mutations(tree, random):
        yield name, _encoded(toml_text(changed))


def lines_mutations(data: bytes, random: np.random.Generator) -> Iterator[Mutation]:
    """Yield changed JSON lines: lines as items of a list, and what is in one line."""
    lines = data.splitlines()
    inside = [tree_mutations(json.loads(line), random) for line in lines[:12]]
    while True:
        number = int(random.integers(len(lines)))
        other = int(random.integers(len(lines)))
        swapped = list(lines)
        swapped[number], swapped[other] = swapped[other], swapped[number]
        yield f"lines {number} and {other} swapped", b"\n".join(swapped) + b"\n"
        yield f"line {number} twice", b"\n".join([*lines[: number + 1], *lines[number:]]) + b"\n"
        yield f"line {number} gone", b"\n".join([*lines[:number], *lines[number + 1 :]]) + b"\n"
        for at, trees in enumerate(inside):
            name, tree = next(trees)
            changed = _encoded(json_text(tree))
            yield f"line {at}: {name}", b"\n".join([*lines[:at], changed, *lines[at + 1 :]]) + b"\n"


def tensor_file_mutations(data: bytes, random: np.random.Generator) -> Iterator[Mutation]:
    """Yield changed safetensors files: header, its length, and what lies behind it."""
    n_header = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + n_header]), data[8 + n_header :]
    trees = tree_mutations(header, random)
    lengths = (0, 1, 8, n_header - 1, n_header + 1, len(data) - 8, len(data), 2**31, 2**32, 2**40, 2**63, 2**64 - 1)
    for length in lengths:
        yield f"header of {length}", length.to_bytes(8, "little") + data[8:]
    for name, changed in (("longer", body + bytes(64)), ("shorter", body[:-1]), ("gone", b"")):
        yield f"data {name}", data[: 8 + n_header] + changed
    while True:
        name, tree = next(trees)
        text = _encoded(json_text(tree))
        yield name, len(text).to_bytes(8, "little") + text + body
        at = int(random.integers(len(body) + 1))
        yield f"data changed at {at}", data[: 8 + n_header + at] + b"\xff" + data[8 + n_header + at + 1 :]


Slot = tuple[str, int, str]
"""A number in a binary file: its name, where it is, and its format."""


def slot_mutations(data: bytes, slots: Sequence[Slot], random: np.random.Generator) -> Iterator[Mutation]:
    """Yield a binary file with one of its numbers changed, or cut where one begins."""
    while True:
        for number in random.permutation(len(slots)):
            name, at, code = slots[number]
            size = struct.calcsize(code)
            (value,) = struct.unpack(code, data[at : at + size])
            wrong = (0, 1, value + 1, value - 1, value * 2, value // 2, 1 << 31, 1 << 62, (1 << 64) - 1)
            chosen = wrong[int(random.integers(len(wrong)))] % (1 << 8 * size)
            yield f"{name} = {chosen}", data[:at] + chosen.to_bytes(size, "little") + data[at + size :]
            yield f"cut at {name}", data[:at]
            yield f"{name} gone", data[:at] + data[at + size :]


def byte_mutations(data: bytes, random: np.random.Generator) -> Iterator[Mutation]:
    """Yield files damaged without regard to what they are."""
    while True:
        yield "bytes damaged", damaged(random, data)
        yield f"cut at {(cut := int(random.integers(len(data) + 1)))}", data[:cut]


def mixed(structural: Iterator[Mutation], others: Iterator[Mutation]) -> Iterator[Mutation]:
    """Yield four structural mutations, then one of bytes, and so on."""
    while True:
        for _ in range(4):
            yield next(structural)
        yield next(others)
