"""``--schedules`` and ``--lr-grid`` as values."""

import pytest

from memsim.compare.contenders import LR_GRIDS, MAX_STEPS, Contender, parse_contenders
from memsim.errors import UsageError


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
