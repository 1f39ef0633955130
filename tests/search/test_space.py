"""What is in the search space: the named schedules, any number of blocks, always the same."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest

from memsim.ir.program import Program
from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig
from memsim.planner.run_plan import TrainingSetup
from memsim.schedules.choices import choices_for
from memsim.schedules.lowering import lower
from memsim.schedules.optimizers import OptimizerConfig
from memsim.search import space
from memsim.search.keep_sets import keep_sets
from memsim.search.needs import capped_process
from memsim.search.probe import probe
from memsim.search.search import PACKED, search
from memsim.search.space import Bounds, Region, mlp_tiles, regions
from memsim.simulator.device_file import find_device
from toy_families import toy_config

DEVICE = find_device("mac-m4")
NUMBERS = DEVICE.at("nominal")
NEEDS = capped_process(70_000_000, 2_000)
OPTIMIZER = OptimizerConfig()
SMALL = Bounds(max_sets=3)
BLOCKS, TOKENS = 4, 256


def _graph(accumulate: int = 1, n_blocks: int = BLOCKS) -> ModelGraph:
    config = toy_config(num_hidden_layers=n_blocks, hidden_size=64, intermediate_size=256, head_dim=16)
    return ModelGraph(config, LoraConfig(rank=2), TOKENS, 32, accumulate, threads=2)


def _setup(n_blocks: int) -> TrainingSetup:
    """Return a step of few tokens, for which few tiles are looked at."""
    return TrainingSetup(_graph(1, n_blocks).config, 32, LoraConfig(rank=2), "auto", 48, OPTIMIZER, threads=2)


@cache
def _regions() -> tuple[Region, ...]:
    bounds = Bounds(tiles=(None, 128))
    return tuple(regions(_graph(), OPTIMIZER, NUMBERS, DEVICE.rule, ("tile", "block"), bounds))


def _nodes(program: Program) -> list[tuple[str, str, str, Sequence[str], Sequence[str]]]:
    """Return the nodes of a step but those that ask for pages ahead."""
    return [
        (node.op, node.part, node.phase, tuple(node.inputs), tuple(node.outputs))
        for node in program.nodes
        if node.op != "prefetch"
    ]


@pytest.mark.parametrize("name", ["mebp", "mesp", "backprop", "tiled"])
def test_a_named_schedule_is_a_point_of_the_space(name: str) -> None:
    named = choices_for(name, BLOCKS, _graph().residuals)
    # The space updates a block as soon as it can and asks for pages ahead: the same step, as the end of this test says.
    point = replace(named, update="block", prefetch=True)
    assert name != "tiled" or point == named
    assert point.mlp_tile in mlp_tiles(TOKENS)
    there = [
        region
        for region in _regions()
        if point.head in region.heads and replace(region.whole, blocks=point.blocks, head=point.head) == point
    ]
    assert len(there) == 1
    assert all(way in ways for way, ways in zip(point.blocks, there[0].sets, strict=True))
    for device in ("iphone-15-pro-max", "raspberry-pi-5"):  # whatever is fast and what is slow
        assert point.blocks[1] in keep_sets(_graph(), 1, find_device(device).at("nominal"))
    # Its nodes are the same, and with gradients to sum even in the same order.
    one, other = (_nodes(lower(_graph(), choices, OPTIMIZER)) for choices in (named, point))
    assert Counter(one) == Counter(other)
    one, other = (_nodes(lower(_graph(2), choices, OPTIMIZER)) for choices in (named, point))
    assert one == other


def test_more_blocks_are_no_more_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are lowered, which is what takes time, as often for 48 blocks as for 4."""
    counts = []
    for n_blocks in (4, 48):
        lowered: list[int] = []

        def counting(graph: ModelGraph, *rest: object, seen: list[int] = lowered) -> object:
            seen.append(graph.config.num_hidden_layers)
            return probe(graph, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(space, "probe", counting)
        found = search(_setup(n_blocks), NUMBERS, DEVICE.rule, NEEDS, PACKED, SMALL)
        counts.append(lowered)
        assert len(found.smallest().choices.blocks) == n_blocks
    assert counts[0] == counts[1]
    assert max(counts[0]) <= 30


SEARCH_48 = """
from test_space import DEVICE, NEEDS, NUMBERS, PACKED, SMALL, _setup
from memsim.search.search import search
from memsim.schedules.record import record_choices
found = search(_setup(48), NUMBERS, DEVICE.rule, NEEDS, PACKED, SMALL)
print(len(found.candidates), found.limits)
for c in found.candidates:
    blocks = [(b.count, sorted(b.keep), sorted(b.spill)) for b in record_choices(c.choices).blocks]
    print(c.need_bytes, c.peak_bytes, c.time_ps, blocks, c.choices.mlp_tile, c.choices.adapters, c.choices.state)
"""


def test_a_search_over_48_blocks_finds_the_same_in_every_process() -> None:
    """Sets of names are ordered by a hash that is another in every process."""
    here = os.path.pathsep.join(sys.path)
    printed = [
        subprocess.run(
            [sys.executable, "-c", SEARCH_48], env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": here},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert printed[0] == printed[1]
    assert int(printed[0].split()[0]) > 20
