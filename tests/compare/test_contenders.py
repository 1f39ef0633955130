"""``--schedules`` and ``--lr-grid`` as values."""

import pytest

from memsim.compare.contenders import Contender, default_grid, own_settings, parse_contenders
from memsim.compare.rates import LR_GRIDS
from memsim.errors import UsageError
from memsim.models.schemes import SCHEMES
from memsim.runtime.settings import MOST_STEPS
from memsim.schedules.names import SCHEDULE_NAMES
from memsim.schedules.zeroth_order import METHODS, ZeroOrder, estimator

FIRST_ORDER, ZEROTH_ORDER = LR_GRIDS["first-order"]["lora"], LR_GRIDS["zeroth-order"]["lora"]


def test_steps_are_the_common_ones_or_a_schedule_s_own() -> None:
    assert parse_contenders("mebp, mezo:200", 100, []) == (
        Contender("mebp", 100, FIRST_ORDER),
        Contender("mezo", 200, ZEROTH_ORDER),
    )


def test_a_grid_is_for_all_or_for_one_and_sorted() -> None:
    mebp, tiled, backprop = parse_contenders("mebp,tiled,backprop", 5, ["3e-3,1e-3", "tiled:2,1,1"])
    assert mebp.lrs == backprop.lrs == (1e-3, 3e-3)
    assert tiled.lrs == (1.0, 2.0)


@pytest.mark.parametrize(
    ("schedules", "grids", "message"),
    [
        ("mebp,nothing", [], "no schedule called 'nothing'; schedules: mebp,"),
        ("mebp,", [], "has an empty item"),
        ("mebp,mebp:3", [], "names one schedule twice"),
        ("mebp:", [], "'' is not a number of steps"),
        ("mebp:ten", [], "'ten' is not a number of steps"),
        ("mebp:0", [], "--steps 0 is below 1"),
        (f"mebp:{MOST_STEPS + 1}", [], f"is above {MOST_STEPS}"),
        ("mebp", ["1e-3,0"], "'0' is not a positive learning rate"),
        ("mebp", ["nan"], "'nan' is not a positive learning rate"),
        ("mebp", ["mebp:fast"], "'fast' is not a positive learning rate"),
        ("mebp", ["tiled:1e-3"], "--lr-grid tiled:... is for none of what is compared: mebp"),
    ],
)
def test_what_cannot_be_is_refused(schedules: str, grids: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_contenders(schedules, 10, grids)
    assert message in str(refusal.value)


def test_every_schedule_is_paired_with_every_scheme() -> None:
    contenders = parse_contenders("mebp,mezo:200", 100, [], ["lora", "head"])
    assert [(item.label, item.steps) for item in contenders] == [
        ("mebp", 100),
        ("mezo", 200),
        ("mebp-head", 100),
        ("mezo-head", 200),
    ]
    assert [item.scheme for item in contenders] == ["lora", "lora", "head", "head"]
    assert contenders[2].lrs == LR_GRIDS["first-order"]["head"] != FIRST_ORDER
    with pytest.raises(UsageError, match="--scheme names one scheme twice: lora, lora"):
        parse_contenders("mebp", 10, [], ["lora", "lora"])


def test_a_grid_is_for_a_schedule_or_for_its_pair_with_a_scheme() -> None:
    grids = ["1", "mezo:2", "mezo-head:3"]
    lrs = {item.label: item.lrs for item in parse_contenders("mebp,mezo", 5, grids, ["lora", "head", "norms"])}
    assert lrs == {
        **dict.fromkeys(("mebp", "mebp-head", "mebp-norms"), (1.0,)),
        **dict.fromkeys(("mezo", "mezo-norms"), (2.0,)),
        "mezo-head": (3.0,),
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_the_grid_of_every_scheme_has_three_rising_rates(schedule: str, scheme: str) -> None:
    low, middle, high = default_grid(schedule, scheme)
    assert 0 < low < middle < high


def test_rates_of_virtual_tokens_depend_on_whether_steps_are_as_long_as_the_gradient() -> None:
    as_long = {name: default_grid(name, "prefix") for name in ("mezo", "zo-sgd-mmt", "zo-sgd-cons", "forward-grad")}
    normalized = {name: default_grid(name, "prefix") for name in ("zo-adam", "zo-sgd-sign-scalar", "fzoo")}
    assert len(set(as_long.values())) == len(set(normalized.values())) == 1
    assert min(as_long["mezo"]) > min(normalized["fzoo"])


def test_settings_of_a_comparison_reach_the_schedules_that_have_them() -> None:
    asked = ZeroOrder(eps=0.01, directions=3, sparsity=0.5)
    assert own_settings("mezo", asked) == asked
    assert own_settings("zo-sgd-cons", asked) == ZeroOrder(eps=0.01, sparsity=0.5)
    assert own_settings("forward-grad", asked) == ZeroOrder(sparsity=0.5)
    assert own_settings("mebp", asked) == ZeroOrder()
    for name in METHODS:
        estimator(name, own_settings(name, asked), lr=1e-3)  # refuses what a method cannot have


def test_a_hybrid_takes_the_rates_of_what_it_differentiates() -> None:
    (hybrid,) = parse_contenders("hybrid", 5, [])
    assert hybrid.lrs == FIRST_ORDER


def test_noise_and_rates_reach_those_that_can_have_them() -> None:
    asked = ZeroOrder(noise="gaussian", lr=0.5, hybrid_k=2)
    assert own_settings("hybrid", asked) == asked
    assert own_settings("mezo", asked) == ZeroOrder(noise="gaussian")
    assert own_settings("fzoo", asked) == ZeroOrder()  # defined for one noise only
    for name in METHODS:
        estimator(name, own_settings(name, asked), lr=1e-3)
