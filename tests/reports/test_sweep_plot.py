"""The picture of a sweep: one line for the points that differ in one number."""

from dataclasses import replace
from pathlib import Path

from memsim.reports.sweep_plot import plot_sweep
from memsim.sweep.row import Row

ROW = Row(
    key="k", mode="run", model="tiny", seq_len=8, lora_rank=None, schedule="mebp", budget_bytes=10**9, device=None,
    settings="{}", command="memsim run", status="done", error=None, fits=True, verdict="done",
    peak_footprint_bytes=50_000_000, peak_working_set_bytes=3, step_s=0.5, seconds=1.5, record=None,
)  # fmt: skip


def _drawn(path: Path, *rows: Row) -> str:
    plot_sweep(path, rows)
    return path.read_text()


def test_lines_are_what_differs_beside_the_numbers_along_the_axis(tmp_path: Path) -> None:
    rows = [
        replace(ROW, seq_len=seq_len, schedule=schedule, budget_bytes=budget)
        for seq_len in (8, 16, 32)
        for schedule in ("mebp", "tiled")
        for budget in (10**9, 5 * 10**8)
    ]
    drawn = _drawn(tmp_path / "a.svg", *rows)
    for words in ("tokens", "peak footprint, MB", "step, s", "budget 500 MB, tiled", "budget 1,000 MB, mebp"):
        assert words in drawn
    assert "tiny" not in drawn  # they all are
    assert _drawn(tmp_path / "b.svg", *rows) == drawn


def test_points_without_figures_and_points_that_differ_in_no_number(tmp_path: Path) -> None:
    refused = replace(ROW, peak_footprint_bytes=None, step_s=None)
    models = [replace(ROW, model=f"/models/{name}") for name in ("one", "two")]
    drawn = _drawn(tmp_path / "a.svg", *models, refused)
    assert ">one<" in drawn and ">two<" in drawn and "/models" not in drawn
    assert "tokens" not in drawn
    assert "<svg" in _drawn(tmp_path / "b.svg", refused)
