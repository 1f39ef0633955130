"""The verifier rejects each kind of broken program; printing and files keep everything."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.errors import InputError
from memsim.ir.builder import Builder
from memsim.ir.op import OpError
from memsim.ir.ops import OPS
from memsim.ir.program import Node, Program, Repeat, Space, TensorType, Value
from memsim.ir.serialize import PlacedProgram, load_program, save_program
from memsim.ir.verify import verify
from memsim.planner.plan import plan_memory
from toy import plan_toy

T4 = TensorType((4, 8))


def chain() -> Program:
    """x -> a = x + x -> b = a + x."""
    builder = Builder()
    builder.input("x", T4)
    builder.emit("add", ["x", "x"], ["a"])
    builder.emit("add", ["a", "x"], ["b"])
    return builder.build(["b"])


def test_a_built_program_is_legal_and_is_what_was_emitted() -> None:
    program = chain()
    verify(program)
    nodes = [(node.op, node.inputs, node.outputs, dict(node.attrs)) for node in program.nodes]
    assert nodes == [("add", ("x", "x"), ("a",), {}), ("add", ("a", "x"), ("b",), {})]
    assert (program.inputs, program.outputs) == (("x",), ("b",))
    assert {name: (str(value.type), value.space) for name, value in program.values.items()} == {
        name: ("f32[4,8]", Space.ARENA) for name in "xab"
    }


def _with_node(program: Program, index: int, **changes: object) -> Program:
    nodes = list(program.nodes)
    nodes[index] = replace(nodes[index], **changes)
    return replace(program, nodes=tuple(nodes))


def _with_value(program: Program, name: str, **changes: object) -> Program:
    return replace(program, values=program.values | {name: replace(program.values[name], **changes)})


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (_with_node(chain(), 0, op="frobnicate"), "unknown op"),
        (_with_node(chain(), 0, inputs=("x", "nobody")), "not declared"),
        (_with_node(chain(), 0, inputs=("x", "b")), "read before it is defined"),
        (_with_node(chain(), 1, outputs=("a",)), "defined twice"),
        (_with_node(chain(), 1, inputs=("a",)), "tuple index|list index"),
        (_with_value(chain(), "b", type=TensorType((4, 9))), "outputs are"),
        (replace(chain(), outputs=("c",)), "never defined"),
        (_with_value(chain(), "a", alias_of="x"), "overwritten by node 0"),
        (_with_value(chain(), "b", alias_of="b"), "does not read"),
        (_with_value(_with_value(chain(), "b", alias_of="a"), "a", space=Space.PINNED), "differ in type or space"),
        (replace(_with_value(chain(), "b", alias_of="a"), outputs=("a", "b")), "output a was overwritten"),
        (replace(chain(), repeat=Repeat(1, 5, 2)), "does not fit"),
        (replace(chain(), repeat=Repeat(0, 1, 2)), "last micro-batch only"),
    ],
)
def test_the_verifier_rejects(program: Program, message: str) -> None:
    with pytest.raises(OpError, match=message):
        verify(program)


def test_ops_refuse_inputs_that_do_not_fit() -> None:
    builder = Builder()
    builder.input("x", T4)
    builder.input("w", TensorType((3, 9)))
    with pytest.raises(OpError, match="linear -> y"):
        builder.emit("linear", ["x", "w"], ["y"])
    for wrong in ({"window": -1}, {"window": 3, "causal": False}, {"scale": 1}, {"scale": -0.5}, {"causal": 1}):
        attrs = {"n_heads": 1, "n_kv_heads": 1, "scale": 0.5, "window": 0, "causal": True} | wrong
        with pytest.raises(OpError, match="float scale"):
            builder.emit("attention", ["x", "x", "x"], ["o", "lse"], **attrs)


def test_a_value_read_twice_by_its_last_reader_is_counted_once() -> None:
    program = chain()  # the first node reads x twice
    size = T4.n_bytes
    assert plan_memory(program).live_bytes.tolist() == [2 * size, 3 * size]


def test_a_program_file_holds_everything(tmp_path: Path, toy_pack) -> None:  # type: ignore[no-untyped-def]
    for accumulate in (1, 2):
        placed = plan_toy(toy_pack, accumulate=accumulate).train
        save_program(placed, tmp_path / "p.jsonl")
        assert load_program(tmp_path / "p.jsonl") == placed


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (0, {"schema": "memsim.program/0"}, "schema"),
        (0, {"n_values": 10**9}, "too many"),
        (0, {"n_nodes": -1}, "not a count"),
        (0, {"arena_bytes": 8}, "outside the arena"),
        (0, {"inputs": [10**6]}, "index"),
        (1, ["x", "f32", [-1], "arena", "", -1, 0], "not a count"),
        (1, ["x", "f99", [1], "arena", "", -1, 0], "malformed"),
        (1, ["x", "f32", [1], "arena", "", 7, 0], "overwrites a later one"),
        (1, ["x", "f32", [1], "arena", "", -1, -1], "no place in the arena"),
        (-1, ["nope", [0], [1], {}, "", ""], "nope"),
        (-1, ["add", [0], [1], {"a": []}, "", ""], "malformed attributes"),
    ],
)
def test_damaged_program_files_are_one_line_errors(tmp_path: Path, line: int, change, message: str) -> None:  # type: ignore[no-untyped-def]
    program = chain()
    plan = plan_memory(program)
    path = tmp_path / "p.jsonl"
    save_program(PlacedProgram(program, "hash", plan.offsets, plan.arena_bytes), path)
    lines = path.read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | change if isinstance(change, dict) else change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=message) as caught:
        load_program(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_program_files_never_raise_anything_else(tmp_path_factory, data) -> None:  # type: ignore[no-untyped-def]
    program = chain()
    plan = plan_memory(program)
    path = tmp_path_factory.mktemp("mutated") / "p.jsonl"
    save_program(PlacedProgram(program, "hash", plan.offsets, plan.arena_bytes), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        verify(load_program(path).program)


def test_every_op_is_executed_differentiated_or_stored() -> None:
    from memsim.execution.executor import _STORAGE_OPS
    from memsim.execution.kernels import KERNELS

    assert set(OPS) == set(KERNELS) | set(_STORAGE_OPS)
    assert not set(KERNELS) & set(_STORAGE_OPS)
    backward = {name for name in OPS if name.endswith(("_backward", "_tangent"))}
    differentiated = {name for name, row in OPS.items() if row.gradient}
    assert not differentiated & backward
    assert {name.removesuffix("_backward") for name in OPS if name.endswith("_backward")} <= differentiated | {"lora"}
    assert {"linear_q4", "attention", "rmsnorm", "rope", "add", "linear_cross_entropy_q4"} <= differentiated


def test_node_and_value_names_say_where_they_are() -> None:
    assert str(Node("add", (), (), {}, "block_007", "backward")) == "add, block_007 backward"
    assert Value("x", T4).n_bytes == 4 * 8 * 4
