"""The search against every schedule of a small space, and what it promises of budgets."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.errors import LimitError
from memsim.models.lora import LoraConfig
from memsim.models.presets import PRESETS
from memsim.models.scheme import Scheme
from memsim.models.schemes import Head, Norms, Prefix, Prompt
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.schedules.choices import Choices, tiled
from memsim.schedules.optimizers import OptimizerConfig
from memsim.search.keep_sets import keep_sets
from memsim.search.longest import longest_sequence
from memsim.search.named import NAMED
from memsim.search.needs import capped_process, device_app
from memsim.search.probe import node_seconds
from memsim.search.refusal import nothing_fits
from memsim.search.search import PACKED, Search, search
from memsim.search.space import Bounds, mlp_tiles
from memsim.simulator.device_file import find_device
from toy_families import toy_config

DEVICE = find_device("mac-m4")
NUMBERS = DEVICE.at("nominal")
NEEDS = capped_process(70_000_000, 2_000)
SMALL = Bounds(max_sets=2, tiles=(None, 32))
MB = 10**6


def _toy_setup() -> TrainingSetup:
    config = toy_config(num_hidden_layers=4, hidden_size=64, intermediate_size=256, head_dim=16)
    return TrainingSetup(config, 32, LoraConfig(rank=2), "auto", 64, OptimizerConfig(), threads=2)


@cache
def _half_a_billion() -> Search:
    setup = TrainingSetup(PRESETS["qwen2.5-0.5b"], 32, LoraConfig(), "auto", 256, OptimizerConfig(), threads=2)
    return search(setup, NUMBERS, DEVICE.rule, NEEDS, PACKED)


def _need(plan: RunPlan) -> int:
    return NEEDS.total(plan.memory.peak_bytes, plan.memory.file_floor_bytes, plan.n_nodes)


def _seconds(plan: RunPlan) -> float:
    return float(node_seconds(plan.train.program, NUMBERS, DEVICE.rule).sum())


def _every_schedule(setup: TrainingSetup) -> Iterator[Choices]:
    sets = keep_sets(setup.graph(), 1, NUMBERS, SMALL.max_sets)
    assert SMALL.tiles is not None
    for tile, adapters, state in product(SMALL.tiles, ("paged", "pinned"), ("paged", "pinned")):
        for blocks in product(sets, repeat=4):
            yield Choices(blocks, "tile", "one_pass", adapters, "block", tile, prefetch=True, state=state)


def test_on_four_blocks_nothing_is_faster() -> None:
    setup, bounds = _toy_setup(), replace(SMALL, heads=("one_pass",))
    found = search(setup, NUMBERS, DEVICE.rule, NEEDS, bounds=bounds, tolerance=0.0)
    plans = [plan_run(replace(setup, choices=choices), "") for choices in _every_schedule(setup)]
    assert len(plans) == 8 * 2**4
    plans += [plan_run(replace(setup, schedule=name), "") for name in NAMED]  # they stand beside the space
    everything = sorted((_need(plan), _seconds(plan)) for plan in plans)
    best = float("inf")
    for need, seconds in everything:
        if seconds < best * (1 - 1e-9):
            best = seconds
            plan = found.fastest(need)
            assert plan is not None
            assert plan.need_bytes <= need
            assert plan.time_s <= best * (1 + 1e-9)
    assert found.fastest(everything[0][0] - 1) is None
    assert found.smallest().need_bytes == everything[0][0]


@pytest.mark.parametrize("scheme", [LoraConfig(rank=2), Norms(), Prefix(5), Prompt(5), Head(3)], ids=lambda s: s.name)
def test_what_candidates_need_is_what_their_plans_need(scheme: Scheme) -> None:
    found = search(replace(_toy_setup(), scheme=scheme), NUMBERS, DEVICE.rule, NEEDS, PACKED, SMALL)
    gaps = [found.exact(candidate).need_bytes - candidate.need_bytes for candidate in found.candidates]
    assert min(gaps) >= 0
    assert max(gaps) <= 20_000  # between values of the arena, of a working set of half a megabyte


@settings(deadline=None, max_examples=6)
@given(st.lists(st.integers(130 * MB, 900 * MB), min_size=2, max_size=4))
def test_a_larger_budget_never_gets_a_slower_plan(budgets: list[int]) -> None:
    found = [_half_a_billion().fastest(budget) for budget in sorted(budgets)]
    times = [float("inf") if plan is None else plan.time_s for plan in found]
    assert times == sorted(times, reverse=True)
    for budget, plan in zip(sorted(budgets), found, strict=True):
        assert plan is None or (plan.need_bytes <= budget and 0 <= plan.bound < 0.05)


def test_no_schedule_is_much_faster_than_the_one_that_is_found() -> None:
    # From the smallest to the fastest, not for a few random budgets: the bound is worst within 2 MB of the smallest
    # plan, since it does not know what such plans read back from the scratch file.
    found = _half_a_billion()
    smallest = found.smallest().need_bytes
    chosen = [found.exact(candidate) for candidate in (*found.candidates[:8], *found.candidates[8::16])]
    assert len(chosen) >= 20
    assert max(plan.bound for plan in chosen) < 0.05
    assert max(plan.bound for plan in chosen if plan.need_bytes > smallest + 2 * MB) < 0.035


def test_between_the_smallest_and_the_fastest_there_are_many_plans() -> None:
    searched = _half_a_billion()
    low, high = searched.smallest().need_bytes, searched.candidates[-1].need_bytes
    plans = [searched.fastest(low + (high - low) * step // 5 + 1) for step in range(6)]
    assert len({plan.choices for plan in plans if plan}) >= 5


@pytest.mark.parametrize("schedule", ["tiled", "mesp", "mebp", "backprop"])
def test_at_the_need_of_a_named_schedule_it_is_as_fast_and_less_is_possible(schedule: str) -> None:
    searched = _half_a_billion()
    plan = plan_run(replace(searched.setup, schedule=schedule), "")
    found = searched.fastest(_need(plan))
    assert found is not None
    assert found.time_s <= _seconds(plan)
    assert searched.smallest().need_bytes < _need(plan)


def test_with_enough_memory_nothing_is_recomputed_moved_or_tiled() -> None:
    found = _half_a_billion().fastest(1_000 * MB)
    assert found is not None
    program = found.plan.train.program
    assert {node.phase for node in program.nodes if node.op.startswith("linear")} == {"forward", "backward"}
    assert not {node.op for node in program.nodes} & {"spill", "restore", "load", "store", "take_rows", "unpack_q4"}
    plan = plan_run(replace(_half_a_billion().setup, schedule="tiled"), "")
    assert _seconds(plan) / found.time_s > 1.15


def test_two_searches_find_the_same() -> None:
    one, other = (search(_toy_setup(), NUMBERS, DEVICE.rule, NEEDS) for _ in range(2))
    assert one.candidates == other.candidates


def test_a_searched_program_is_for_the_weights_it_was_searched_for() -> None:
    found = search(_toy_setup(), NUMBERS, DEVICE.rule, NEEDS, bounds=SMALL, model_hash="weights").smallest()
    assert found.plan.train.model_hash == "weights"


def test_on_a_phone_its_own_rule_counts() -> None:
    phone = find_device("iphone-15-pro-max")
    numbers, setup = phone.at("nominal"), _toy_setup()
    found = search(setup, numbers, phone.rule, device_app(numbers, phone.rule), bounds=SMALL).smallest()
    peak = found.plan.memory.peak_bytes
    assert found.need_bytes == int(numbers.app_baseline_bytes) + peak + peak // int(numbers.page_bytes) * 8


def test_the_longest_sequence_fits_and_a_longer_one_does_not() -> None:
    config = replace(_toy_setup().config, max_position_embeddings=16_384)
    setup = replace(_toy_setup(), config=config)
    budget = 108 * MB
    longest = longest_sequence(setup, NEEDS, budget)
    assert 64 < longest < config.max_position_embeddings

    def smallest(n_tokens: int) -> int:
        choices = [replace(tiled(4, ()), mlp_tile=tile) for tile in mlp_tiles(n_tokens)]
        return min(_need(plan_run(replace(setup, n_tokens=n_tokens, choices=each), "")) for each in choices)

    assert smallest(longest) <= budget < smallest(longest + longest // 32)


def test_a_refusal_says_what_is_missing_and_what_would_fit() -> None:
    searched = search(_toy_setup(), NUMBERS, DEVICE.rule, NEEDS, bounds=SMALL)
    need = searched.smallest().need_bytes
    error = nothing_fits(searched, 50 * MB, decimal=True)
    assert isinstance(error, LimitError)
    assert f"{(need - 50 * MB) / 1e6:.1f} MB over the budget of 50.0 MB" in str(error)
    assert f"Raise --budget to {need / 1e6:.1f} MB; no --seq-len fits" in str(error)
    assert "shorten --seq-len to " in str(nothing_fits(searched, need - 1000))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_optimizers_with_less_state_need_less(optimizer: str) -> None:
    setup = _toy_setup()
    less = search(replace(setup, optimizer=OptimizerConfig(optimizer)), NUMBERS, DEVICE.rule, NEEDS, bounds=SMALL)
    assert (
        less.candidates[-1].need_bytes
        < search(setup, NUMBERS, DEVICE.rule, NEEDS, bounds=SMALL).candidates[-1].need_bytes
    )
