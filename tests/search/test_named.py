"""Whatever the rates of a device: auto is found wherever a named schedule fits, fits, and is no slower."""

import random
from dataclasses import fields, replace
from functools import cache

import pytest

from memsim.errors import InputError
from memsim.models.lora import LoraConfig
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.schedules.choices import Choices
from memsim.schedules.optimizers import OptimizerConfig
from memsim.search import named
from memsim.search.named import NAMED
from memsim.search.needs import Needs, device_app
from memsim.search.probe import node_seconds
from memsim.search.search import Search, plan_needs, search
from memsim.search.space import Bounds
from memsim.simulator.device import UNITS, Numbers
from memsim.simulator.device_file import find_device
from toy_families import toy_config

DEVICE = find_device("mac-m4")
NUMBERS = DEVICE.at("nominal")
SETUP = TrainingSetup(
    toy_config(num_hidden_layers=2), 32, LoraConfig(rank=2), "auto", 160, OptimizerConfig(), threads=2
)
BOUNDS = Bounds(max_sets=2, tiles=(128,), heads=("one_pass",))
RATES = tuple(item.name for item in fields(Numbers) if UNITS[item.name] in ("FLOP/s", "B/s", "weight/s", "s"))


def searched(numbers: Numbers, bounds: Bounds = BOUNDS, setup: TrainingSetup = SETUP) -> Search:
    return search(setup, numbers, DEVICE.rule, device_app(numbers, DEVICE.rule), ("tile",), bounds)


@cache
def plans() -> dict[str, tuple[int, object]]:
    found: dict[str, tuple[int, object]] = {}
    for name in NAMED:
        plan = cached_plan_by_name(name)
        found[name] = (plan_needs(plan, device_app(NUMBERS, DEVICE.rule)), plan.train.program)
    return found


@cache
def cached_plan_by_name(name: str) -> RunPlan:
    return plan_run(replace(SETUP, schedule=name), "")


def cached_plan_run(setup: TrainingSetup, model_hash: str) -> RunPlan:
    assert replace(setup, schedule=SETUP.schedule) == SETUP and not model_hash
    return cached_plan_by_name(setup.schedule)


def check(found: Search, numbers: Numbers) -> None:
    needs = {name: need for name, (need, _) in plans().items()}
    seconds = {
        name: float(node_seconds(program, numbers, DEVICE.rule).sum())  # type: ignore[arg-type]
        for name, (_, program) in plans().items()
    }
    smallest = found.smallest()
    assert smallest.need_bytes <= min(needs.values())
    for budget in needs.values():
        chosen = found.fastest(budget)
        assert chosen is not None
        plan = plan_run(replace(SETUP, choices=chosen.choices), "")
        assert plan_needs(plan, found.needs) == chosen.need_bytes <= budget
        took_s = float(node_seconds(plan.train.program, numbers, DEVICE.rule).sum())
        assert took_s == pytest.approx(chosen.time_s, rel=1e-6)  # whole picoseconds, of a faster device if need be
        best_s = min(seconds[name] for name, need in needs.items() if need <= budget)
        assert chosen.time_s <= best_s * (1 + 1e-9)
        # What is faster and fits, by the bound, is not: no named schedule that fits is below it.
        assert best_s >= chosen.time_s * (1 - chosen.bound) * (1 - 1e-9)
    assert found.fastest(smallest.need_bytes - 1) is None


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_of_random_devices_no_named_schedule_is_better(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates over six decades, each by itself."""
    monkeypatch.setattr(named, "plan_run", cached_plan_run)  # the named plans are the same for every device
    for seed in range(first, first + 25):
        chance = random.Random(seed)
        numbers = replace(NUMBERS, **{name: getattr(NUMBERS, name) * 10 ** chance.uniform(-3, 3) for name in RATES})
        check(searched(numbers), numbers)


@pytest.mark.parametrize(
    "changes",
    [
        {"op_launch_s": 1e-3},
        {"op_launch_s": 1e9},
        {"dense_flops_per_s": 1e-6},
        {"flash_write_bytes_per_s": 1e18, "flash_read_bytes_per_s": 1e18, "flash_latency_s": 0.0},
    ],
    ids=str,
)
def test_of_devices_at_the_edge_no_named_schedule_is_better(changes: dict[str, float]) -> None:
    numbers = replace(NUMBERS, **changes)
    check(searched(numbers, Bounds(max_sets=6)), numbers)


def test_a_device_on_which_a_step_has_no_end_is_refused() -> None:
    with pytest.raises(InputError, match="has no end"):
        searched(replace(NUMBERS, op_launch_s=1e308))


def test_every_named_schedule_stands_on_the_front_or_below_it() -> None:
    found = searched(replace(NUMBERS, op_launch_s=1e-3))
    front = found.front()
    times = [point.time_ps for point in front]
    assert times == sorted(times, reverse=True)
    for point in found.named.values():
        assert min(p.time_ps for p in front if p.need_bytes <= point.need_bytes) <= point.time_ps


def test_a_named_schedule_counts_by_its_own_needs() -> None:
    """On this machine products of unpacked weights are of another compute path, with a baseline of its own."""
    tight = device_app(NUMBERS, DEVICE.rule)
    wide = replace(tight, footprint=lambda peak: tight.footprint(peak) + 10**9)

    def needs_of(choices: Choices) -> Needs | None:
        return wide if choices.unpack == "block" else tight

    slow = replace(NUMBERS, matmul_flops_per_s=1e3)
    found = search(SETUP, slow, DEVICE.rule, tight, ("tile",), BOUNDS, needs_of=needs_of)
    need = found.named["backprop"].need_bytes
    assert need > 10**9
    best, less = found.fastest(need), found.fastest(need - 1)
    assert best is not None and less is not None
    assert best.choices == found.named["backprop"].choices
    assert less.time_s > best.time_s
    without = search(
        SETUP, slow, DEVICE.rule, tight, ("tile",), BOUNDS,
        needs_of=lambda choices: None if choices.unpack == "block" else tight,
    )  # fmt: skip
    assert set(without.named) == {"tiled", "mesp"}
