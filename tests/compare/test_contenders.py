"""``--schedules`` and ``--lr-grid`` as values."""

import pytest

from memsim.compare.contenders import LR_GRIDS, MAX_STEPS, Contender, own_settings, parse_contenders
from memsim.errors import UsageError
from memsim.schedules.zeroth_order import METHODS, ZeroOrder, estimator


def test_steps_are_the_common_ones_or_a_schedule_s_own() -> None:
    assert parse_contenders("mebp, mezo:200", 100, []) == (
        Contender("mebp", 100, LR_GRIDS["first-order"]),
        Contender("mezo", 200, LR_GRIDS["zeroth-order"]),
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
        ("mebp:0", [], f"0 steps of mebp are not between 1 and {MAX_STEPS}"),
        (f"mebp:{MAX_STEPS + 1}", [], "are not between 1 and"),
        ("mebp", ["1e-3,0"], "'0' is not a positive learning rate"),
        ("mebp", ["nan"], "'nan' is not a positive learning rate"),
        ("mebp", ["mebp:fast"], "'fast' is not a positive learning rate"),
        ("mebp", ["tiled:1e-3"], "is for a schedule that is not in --schedules mebp"),
    ],
)
def test_what_cannot_be_is_refused(schedules: str, grids: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_contenders(schedules, 10, grids)
    assert message in str(refusal.value)


def test_settings_of_a_comparison_reach_the_schedules_that_have_them() -> None:
    asked = ZeroOrder(eps=0.01, directions=3, sparsity=0.5)
    assert own_settings("mezo", asked) == asked
    assert own_settings("zo-sgd-cons", asked) == ZeroOrder(eps=0.01, sparsity=0.5)
    assert own_settings("forward-grad", asked) == own_settings("mebp", asked) == ZeroOrder(sparsity=0.5)
    for name in METHODS:
        estimator(name, own_settings(name, asked), lr=1e-3)  # refuses what a method cannot have


def test_a_hybrid_takes_the_rates_of_what_it_differentiates() -> None:
    (hybrid,) = parse_contenders("hybrid", 5, [])
    assert hybrid.lrs == LR_GRIDS["first-order"]


def test_noise_and_rates_reach_those_that_can_have_them() -> None:
    asked = ZeroOrder(noise="gaussian", lr=0.5, hybrid_k=2)
    assert own_settings("hybrid", asked) == asked
    assert own_settings("mezo", asked) == ZeroOrder(noise="gaussian", hybrid_k=2)
    assert own_settings("fzoo", asked) == ZeroOrder(hybrid_k=2)  # defined for one noise only
    for name in METHODS:
        estimator(name, own_settings(name, asked), lr=1e-3)
