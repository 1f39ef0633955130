import pytest

from memsim.bench.timing import summarise


def test_median_and_percentiles_do_not_depend_on_the_order() -> None:
    timing = summarise([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 100.0])
    assert (timing.median_s, timing.low_s, timing.high_s, timing.repeats) == (6.0, 2.0, 10.0, 11)
    assert timing.spread == pytest.approx(8.0 / 6.0)


def test_a_single_time_has_no_spread() -> None:
    assert summarise([0.5]).spread == 0.0
