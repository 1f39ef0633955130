"""Records of runs as curves: means over seeds, and what each point had cost."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest

from memsim.compare.contenders import Contender
from memsim.compare.device_run import DeviceRun
from memsim.compare.experiment import Choice, Scored
from memsim.compare.plots import plot
from memsim.compare.record import curve
from memsim.compare.table import table
from memsim.errors import WorkerError
from memsim.host import host_info
from memsim.results import Evaluation, Result, StepResult

DEVICE = DeviceRun(forward_passes=2.5, seconds=(0.0, 3.0, 5.0, 7.0), peak_footprint_bytes=77)


def result(losses: list[float | None], step_s: float, peak_bytes: int) -> Result:
    """Return the record of three steps, evaluated before the first, after the second and after the last."""
    evals = tuple(
        Evaluation(step=step, loss=loss, accuracy=step / 10) for step, loss in zip((0, 2, 3), losses, strict=True)
    )
    return Result(
        command="run",
        source="measured",
        model="toy",
        optimizer="adamw",
        peak_footprint_bytes=peak_bytes,
        peak_working_set_bytes=peak_bytes - 10,
        steps=tuple(StepResult(step_s=step_s, bytes_paged_in=1000 + index) for index in range(3)),
        evals=evals,
        host=host_info(),
        versions={},
    )


def scored(*results: Result, losses: dict[float, float | None] | None = None) -> Scored:
    return Scored(Contender("mebp", 3, (0.1, 0.2, 0.3)), Choice(losses or {}, 0.2), results)


def test_a_curve_has_means_over_seeds_and_costs_so_far() -> None:
    item = curve(scored(result([5.0, 4.0, 3.0], 0.5, 100), result([5.0, 4.5, 2.0], 1.5, 120)), DEVICE)
    assert [point.step for point in item.points] == [0, 2, 3]
    assert [point.loss.mean for point in item.points] == [5.0, 4.25, 2.5]
    assert [point.loss.deviation for point in item.points] == [0.0, stdev([4.0, 4.5]), stdev([3.0, 2.0])]
    assert [point.accuracy.mean for point in item.points] == [0.0, 0.2, 0.3]
    assert [point.bytes_read for point in item.points] == [0, 1000 + 1001, 1000 + 1001 + 1002]
    assert [point.seconds for point in item.points] == [0.0, 2 * 1.0, 3 * 1.0]
    assert [point.device_s for point in item.points] == [0.0, 5.0, 7.0]
    assert [point.forward_passes for point in item.points] == [0.0, 5.0, 7.5]
    assert (item.peak_footprint_bytes, item.peak_working_set_bytes, item.device_peak_footprint_bytes) == (120, 110, 77)
    assert (item.lr, item.seeds) == (0.2, 2)
    assert (item.label, item.schedule, item.scheme) == ("mebp", "mebp", "lora")


def test_one_seed_has_no_spread() -> None:
    assert curve(scored(result([5.0, 4.0, 3.0], 0.5, 100)), DEVICE).points[2].loss.deviation == 0.0


def test_a_rate_at_the_edge_of_its_grid_is_said() -> None:
    run = result([5.0, 4.0, 3.0], 0.5, 100)
    assert not curve(scored(run, losses={0.1: 2.0, 0.2: 1.0, 0.3: None}), DEVICE).lr_at_edge
    assert curve(scored(run, losses={0.1: 2.0, 0.2: 1.0}), DEVICE).lr_at_edge
    assert not curve(scored(run), DEVICE).lr_at_edge


def test_a_loss_that_is_no_number_is_an_error() -> None:
    with pytest.raises(WorkerError, match="mebp: the loss on the test text is not finite after step 2"):
        curve(scored(result([5.0, None, 3.0], 0.5, 100)), DEVICE)


def test_the_plot_is_one_svg_that_names_every_schedule_and_repeats_to_the_byte(tmp_path: Path) -> None:
    first = curve(scored(result([5.0, 4.0, 3.0], 0.5, 100), result([5.0, 4.5, 2.0], 1.5, 120)), DEVICE)
    curves = [replace(first, label=f"schedule-{number}") for number in range(12)]
    for name in ("a.svg", "b.svg"):
        plot(curves, "some-phone", False, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    texts = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    assert all(f"schedule-{number}" in texts for number in range(12))
    assert "seconds on some-phone, simulated" in texts
    assert "next-token accuracy" in texts
    plot(curves, "some-phone", True, tmp_path / "task.svg")
    task = "".join(ElementTree.parse(tmp_path / "task.svg").getroot().itertext())
    assert "share of test examples answered right" in task
    assert "next-token" not in task


def test_the_table_has_a_line_for_each_contender_with_its_last_figures() -> None:
    mebp = curve(scored(result([5.0, 4.0, 3.0], 0.5, 10**8), losses={0.1: 2.0, 0.2: 1.0}), DEVICE)
    lines = table([mebp, replace(mebp, label="mebp-head", lr_losses={})], decimal=True)
    header, first, second, star = lines
    assert len(header) == len(first) == len(second)
    assert first.split()[:6] == ["mebp", "3", "0.2*", "5.0000", "->", "3.0000"]
    assert second.split()[:3] == ["mebp-head", "3", "0.2"]
    assert "0.00% -> 30.00%" in first
    assert star.startswith("* the best rate is at the edge of its grid")
