"""Sets of residuals to save, against a sum made set by set."""

from itertools import chain, combinations

import pytest

from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig
from memsim.models.presets import PRESETS
from memsim.planner.arena import align
from memsim.planner.work import node_kind, node_work
from memsim.schedules.emitter import nodes_for
from memsim.search.keep_sets import keep_sets
from memsim.simulator.device_file import find_device
from memsim.simulator.roofline import op_time

NUMBERS = find_device("mac-m4").at("nominal")
GRAPH = ModelGraph(PRESETS["qwen2.5-0.5b"], LoraConfig(), 256, 32, threads=2)
# What one node makes is saved together.
UNITS = (
    {"attn_norm", "attn_norm.rstd"}, {"q.rope"}, {"k.rope"}, {"v"}, {"attn", "attn.lse"}, {"x_mid"},
    {"mlp_norm", "mlp_norm.rstd"}, {"gate"}, {"up"}, {"swiglu"},
)  # fmt: skip


def _cost(keep: set[str]) -> tuple[int, float]:
    """Return (bytes, seconds of recomputing) of a block that keeps these residuals."""
    attention, mlp = GRAPH.attention(1), GRAPH.mlp()
    values = attention.forward.values | mlp.forward.values
    frozen = {*attention.forward.inputs, *mlp.forward.inputs} - {"x", "x_mid"}
    nodes = [*attention.forward.nodes, *mlp.forward.nodes]
    wanted = {*attention.backward.residuals, *mlp.backward.residuals}
    seconds = 0.0
    for node in nodes_for(nodes, wanted, keep | frozen):
        program = attention.forward if node in attention.forward.nodes else mlp.forward
        time = op_time(node_kind(node), node_work(program, node), NUMBERS)
        seconds += time.compute_s + time.unpack_s
    return sum(align(values[name].n_bytes) for name in keep), seconds


def test_no_set_beats_what_is_found() -> None:
    found = [_cost(set(choice.keep)) for choice in keep_sets(GRAPH, 1, NUMBERS, 1000) if not choice.spill]
    every = chain.from_iterable(combinations(UNITS, count) for count in range(len(UNITS) + 1))
    costs = [_cost({"x"}.union(*units)) for units in every]
    assert len(costs) == 1024
    for n_bytes, seconds in costs:
        assert min(s for b, s in found if b <= n_bytes) <= seconds * (1 + 1e-9)


def test_the_ends_are_the_block_input_on_disk_and_everything_in_memory() -> None:
    for max_sets in (1000, 24, 2):
        sets = keep_sets(GRAPH, 1, NUMBERS, max_sets)
        assert len(sets) <= max_sets
        assert (sets[0].keep, sets[0].spill) == (frozenset(), frozenset({"x"}))
        assert sets[-1].keep == set(GRAPH.residuals)
    assert [choice.spill for choice in keep_sets(GRAPH, 1, NUMBERS, 1)] == [frozenset({"x"})]


@pytest.mark.parametrize("model", ["gemma3-1b", "opt-125m"])
def test_every_set_saves_the_block_input_and_nothing_twice(model: str) -> None:
    graph = ModelGraph(PRESETS[model], LoraConfig(), 64, 32)
    for choice in keep_sets(graph, 1, NUMBERS):
        assert "x" in choice.keep | choice.spill
        assert not choice.keep & choice.spill
        assert choice.keep | choice.spill <= {*graph.residuals}
