"""What a probe says of mixtures, against the planner and the simulator on the whole model."""

import random
from dataclasses import replace

import numpy as np
import pytest

from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig
from memsim.models.scheme import Scheme
from memsim.models.schemes import Head, Norms, Prefix, Prompt
from memsim.planner.plan import plan_memory
from memsim.schedules.choices import tiled
from memsim.schedules.lowering import lower
from memsim.schedules.optimizers import OptimizerConfig
from memsim.search.keep_sets import keep_sets
from memsim.search.probe import node_seconds, probe, shortened
from memsim.search.space import Bounds, regions
from memsim.simulator.device_file import find_device
from memsim.simulator.simulate import simulate
from memsim.simulator.trace import trace_program
from toy_families import FAMILY_CHANGES, family_config, toy_config

DEVICE = find_device("mac-m4")
NUMBERS = DEVICE.at("nominal")
OPTIMIZER = OptimizerConfig()
T = 40


LORA = LoraConfig(rank=3)


def _graph(family: str, accumulate: int = 1, scheme: Scheme = LORA) -> ModelGraph:
    config = family_config(family) if family else toy_config(num_hidden_layers=4)
    return ModelGraph(config, scheme, T, 32, accumulate, threads=2)


@pytest.mark.parametrize(
    ("family", "accumulate", "scheme"),
    [
        *(("", 1, LORA), ("", 3, LORA), ("gemma3_text", 1, LORA), ("opt", 1, LORA), ("qwen3", 2, LORA)),
        *(("", 1, Norms()), ("gemma3_text", 2, Norms()), ("", 1, Prefix(5)), ("qwen3", 2, Prefix(5))),
        *(("", 1, Prompt(5)), ("opt", 2, Prompt(5)), ("", 1, Head(3)), ("", 2, Head(3))),
    ],
    ids=str,
)
def test_every_region_s_mixtures_are_what_planner_and_simulator_say(
    family: str, accumulate: int, scheme: Scheme
) -> None:
    graph, chance = _graph(family, accumulate, scheme), random.Random(3)
    bounds = Bounds(max_sets=6, tiles=(None, 32))
    for region in regions(graph, OPTIMIZER, NUMBERS, DEVICE.rule, ("tile",), bounds):
        front = region.front
        for index in chance.sample(range(len(front.time_ps)), min(4, len(front.time_ps))):
            program = lower(graph, region.choices(index), OPTIMIZER)
            plan = plan_memory(program)
            assert plan.live_bytes.max() - plan.pinned_bytes - plan.staging_bytes == front.arena_bytes[index]
            assert plan.pinned_bytes == region.pinned_bytes
            assert len(program.nodes) == front.n_nodes[index]
            warm = simulate(trace_program(program, plan), DEVICE, 1).nominal.warm.split.total_s
            assert (front.time_ps[index] + region.extra_ps) / 1e12 == pytest.approx(warm, rel=1e-6)


def test_a_probe_s_parts_are_its_whole() -> None:
    graph = shortened(_graph(""), [0, 1, 1])
    sets = keep_sets(graph, 1, NUMBERS)
    choices = replace(tiled(3, graph.residuals), blocks=(sets[0], sets[-1], sets[len(sets) // 2]))
    found = probe(graph, choices, OPTIMIZER, NUMBERS, DEVICE.rule)
    program = lower(graph, choices, OPTIMIZER)
    total_ps = found.frame.time_ps + sum(block.time_ps for block in found.blocks)
    assert total_ps / 1e12 == pytest.approx(
        float(np.sum(node_seconds(program, NUMBERS, DEVICE.rule))), abs=len(program.nodes) * 1e-12
    )
    assert found.frame.n_nodes + sum(block.n_nodes for block in found.blocks) == len(program.nodes)
    assert found.blocks[0].kept_bytes == 0
    assert len(found.blocks[0].restored) == 1


def test_families_are_those_of_the_toys() -> None:
    assert {"gemma3_text", "opt", "qwen3"} <= FAMILY_CHANGES.keys()
