import pytest
from test_baseline_file import RESULT, SETTINGS, Baseline, replace

from memsim.regression.check import TIME, compare
from memsim.regression.describe import MOST_ROWS, growth_lines, otherwise_lines, table, what_grew
from memsim.regression.differences import (
    Growth,
    Held,
    Otherwise,
    asked_otherwise,
    figures,
    grown,
    reading_error_bytes,
    side_by_side,
)
from memsim.results import Request, Result, StepResult


def timed(share: float | None, compute: str = "f32") -> Baseline:
    return Baseline(
        settings=SETTINGS, result=replace(RESULT, compute=compute), peak_by_op_bytes={}, held_until={}, roof_share=share
    )


def test_growth_is_what_is_new_or_larger_most_first() -> None:
    rows = grown({"a": 5, "b": 5, "gone": 9}, {"a": 6, "b": 5, "new": 3, "c": 3})
    assert rows == [Growth("c", 0, 3), Growth("new", 0, 3), Growth("a", 5, 6)]
    assert grown({"a": 5}, {"a": 7}, least_bytes=2) == []


def test_a_measured_figure_may_grow_by_what_two_readings_differ() -> None:
    old = replace(RESULT, peak_working_set_bytes=10**6)
    (working_set,) = [row for row in figures(old, old, 0.02) if row.name == "peak_working_set_bytes"]
    assert working_set.limit == 10**6 + reading_error_bytes()
    large = replace(RESULT, peak_working_set_bytes=10**12)
    (working_set,) = [row for row in figures(large, large, 0.02) if row.name == "peak_working_set_bytes"]
    assert working_set.limit == pytest.approx(1.02e12)


def test_what_the_baseline_does_not_know_passes_and_is_said() -> None:
    rows = figures(replace(RESULT, planned_peak_bytes=5), RESULT, 0.0)
    assert not any(row.failed for row in rows)
    assert "planned_peak" in table(rows)[1] and "(not in the baseline)" in table(rows)[1]


@pytest.mark.parametrize(("share", "failed"), [(0.5, False), (0.4, False), (0.33, True)])
def test_time_is_compared_in_what_the_roof_does(share: float, failed: bool) -> None:
    found = compare(timed(share), timed(0.5), 0.02, 0.5)
    assert [figure.name for figure in found.failed] == ([TIME] if failed else [])


def test_time_of_another_compute_path_is_not_compared() -> None:
    assert compare(timed(0.01, "bf16"), timed(0.5), 0.02, 0.5).failed == ()
    assert compare(timed(None), timed(0.5), 0.02, 0.5).failed == ()


def test_two_runs_side_by_side_show_what_either_has() -> None:
    new = replace(RESULT, step_s=2.0, steps=(StepResult(loss=1.5, bytes_spilled=7),))
    rows = {row.name: (row.baseline, row.actual) for row in side_by_side(RESULT, new)}
    assert rows == {
        "bytes_spilled": (None, 7),
        "baseline_footprint_bytes": (100, 100),
        "loss": (None, 1.5),
        "step_s": (None, 2.0),
    }


def test_the_table_names_what_is_too_much() -> None:
    old, new = (replace(RESULT, planned_peak_bytes=size) for size in (100 << 20, 110 << 20))
    (header, line) = table(figures(new, old, 0.02), only=True)
    assert header.split() == ["baseline", "limit", "actual"]
    assert line == "planned_peak  100.0 MiB  102.0 MiB  110.0 MiB  TOO MUCH"


def test_long_lists_are_cut() -> None:
    rows = [Growth(f"v{index}", 0, 1 << 20) for index in range(MOST_ROWS + 3)]
    lines = growth_lines("values", rows)
    assert len(lines) == MOST_ROWS + 2
    assert lines[1] == "  v0  1.0 MiB, new" and lines[-1] == "  and 3 more"
    assert growth_lines("values", []) == []


def test_a_value_that_lives_longer_is_named() -> None:
    old = replace(timed(None), held_until={"a": "add, step forward", "b": "rope, step forward"})
    new = replace(old, held_until={"a": "evict, step backward", "b": "rope, step forward", "c": "add, step forward"})
    found = compare(new, old, 0.02, None)
    assert found.longer == (Held("a", "add, step forward", "evict, step backward"),)
    assert what_grew(found)[1] == "  a  until evict, step backward (was: add, step forward)"


def test_what_two_runs_were_asked_for_otherwise() -> None:
    def asked(lr: float, model: str) -> Result:
        settings = {"optimizer.lr": lr, "model": model, "seed": 1}
        request = Request(settings=settings, files={"data": "ab"}, started="2026-01-02T03:04:05+00:00")
        return replace(RESULT, request=request)

    assert asked_otherwise(asked(0.5, "a"), asked(0.5, "a")) == []
    rows = asked_otherwise(asked(0.5, "a"), asked(0.25, "b\x1b[31m\nforged"))
    assert rows == [Otherwise("model", "a", "b\x1b[31m\nforged"), Otherwise("optimizer.lr", "0.5", "0.25")]
    lines = otherwise_lines(rows)
    assert lines == ["asked for otherwise", "  model  a -> b\\x1b[31m\\nforged", "  optimizer.lr  0.5 -> 0.25"]
    assert otherwise_lines([]) == []
    assert Otherwise("seed", None, "1") in asked_otherwise(RESULT, asked(0.5, "a"))
