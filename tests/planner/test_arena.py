"""Offsets, live ranges and peaks: overlapping lives never share bytes; the peak is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.ir.program import Space
from memsim.models.lora import LoraConfig
from memsim.models.presets import PRESETS
from memsim.planner.arena import ALIGNMENT, align, assign_offsets
from memsim.planner.liveness import LiveRange, arena_ranges
from memsim.planner.plan import plan_memory
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.planner.staging import staging
from memsim.schedules.optimizers import OptimizerConfig
from toy import plan_toy

ranges = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 1000)).map(
        lambda t: (min(t[0], t[1]), max(t[0], t[1]), t[2])
    ),
    max_size=40,
).map(lambda rows: [LiveRange(f"v{i}", first, last, size) for i, (first, last, size) in enumerate(rows)])


@settings(deadline=None)
@given(ranges)
def test_values_that_live_together_never_share_bytes(items: list[LiveRange]) -> None:
    offsets, total = assign_offsets(items)
    assert offsets.keys() == {item.name for item in items}
    for index, a in enumerate(items):
        assert offsets[a.name] % ALIGNMENT == 0
        assert offsets[a.name] + a.n_bytes <= total
        for b in items[:index]:
            together = a.first <= b.last and b.first <= a.last
            apart = offsets[a.name] + a.n_bytes <= offsets[b.name] or offsets[b.name] + b.n_bytes <= offsets[a.name]
            assert not together or apart


@settings(deadline=None)
@given(ranges)
def test_the_arena_is_between_the_live_peak_and_the_sum(items: list[LiveRange]) -> None:
    _, total = assign_offsets(items)
    live = [sum(align(i.n_bytes) for i in items if i.first <= node <= i.last) for node in range(21)]
    assert max(live) <= total <= sum(align(item.n_bytes) for item in items)


def test_live_bytes_are_what_a_slow_walk_counts(toy_pack) -> None:  # type: ignore[no-untyped-def]
    for schedule in ("mebp", "backprop"):
        program = plan_toy(toy_pack, schedule).train.program
        plan = plan_memory(program)
        last = {}
        for index, node in enumerate(program.nodes):
            for name in (*node.inputs, *node.outputs):
                last[program.root(name)] = index
        pinned = {v.source: v.n_bytes for v in program.values.values() if v.space is Space.PINNED}
        live: set[str] = set()
        for index, node in enumerate(program.nodes):
            live |= {program.root(n) for n in node.outputs if program.values[n].space is Space.ARENA}
            held = sum(align(program.values[name].n_bytes) for name in live)
            assert plan.live_bytes[index] == held + staging([program]).n_bytes + sum(pinned.values())
            live = {name for name in live if last[name] > index}
        assert plan.peak_node == int(np.argmax(plan.live_bytes))
        assert dict(plan.held)["pinned"] == sum(pinned.values())
        assert dict(plan.held)["staging"] == staging([program]).n_bytes


@pytest.mark.parametrize("schedule", ["mebp", "backprop"])
def test_the_arena_of_a_real_model_has_almost_no_holes(schedule: str) -> None:
    setup = TrainingSetup(PRESETS["qwen2.5-0.5b"], 32, LoraConfig(), schedule, 256, OptimizerConfig())
    placed = plan_run(setup, "hash").train
    live = np.zeros(len(placed.program.nodes), int)
    for item in arena_ranges(placed.program):
        live[item.first : item.last + 1] += align(item.n_bytes)
    assert live.max() <= placed.arena_bytes <= 1.005 * live.max()


def test_gradients_live_through_every_micro_batch(toy_pack) -> None:  # type: ignore[no-untyped-def]
    program = plan_toy(toy_pack, accumulate=3).train.program
    repeat = program.repeat
    assert repeat is not None and repeat.count == 3
    zeroed = {node.outputs[0] for node in program.nodes if node.op == "zero"}
    by_name = {item.name: item for item in arena_ranges(program)}
    assert zeroed
    for name in zeroed:
        assert by_name[name].first < repeat.start
        assert by_name[name].last >= repeat.stop
