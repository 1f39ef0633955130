"""The picture and the table of README.md: made from what is stored, and drawn from real runs."""

import importlib.util
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from memsim.errors import InputError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_figures", ROOT / "tools" / "make_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_figures"] = module
    spec.loader.exec_module(module)
    return module


def test_a_rerun_gives_the_committed_bytes(tool: ModuleType) -> None:
    measured = tool.read_measured()
    assert tool.PICTURE.read_text() == tool.picture(measured), "run python tools/make_figures.py"
    readme = tool.README.read_text()
    assert readme == tool.with_table(readme, tool.table(measured)), "run python tools/make_figures.py"


def test_the_picture_shows_every_schedule_and_reads_in_light_and_dark(tool: ModuleType) -> None:
    measured = tool.read_measured()
    drawn = tool.picture(measured)
    shown = "".join(ElementTree.fromstring(drawn).itertext())
    for schedule in {one.schedule for one in measured.runs}:
        assert f"{schedule}: " in shown
    assert "@media(prefers-color-scheme:dark)" in drawn
    assert "<script" not in drawn and "url(" not in drawn


def test_a_higher_peak_is_drawn_higher(tool: ModuleType) -> None:
    measured = tool.read_measured()
    one = measured.runs[0]
    grown = replace(one, footprint_bytes=tuple(n + 50_000_000 for n in one.footprint_bytes))
    assert tool.picture(replace(measured, runs=(grown, *measured.runs[1:]))) != tool.picture(measured)


def test_peaks_that_were_stored_are_those_of_the_steps(tool: ModuleType) -> None:
    for one in tool.read_measured().runs:
        assert len(one.planned_bytes) == len(one.footprint_bytes) == tool.COLUMNS
        # The plan of the whole process adds the session's Python objects, some megabytes, to what is live at a node.
        assert 0 <= one.planned_footprint_bytes - max(one.planned_bytes) < 8_000_000
        assert one.baseline_bytes < min(one.planned_bytes)
        assert max(one.footprint_bytes) <= one.peak_footprint_bytes


def test_a_run_becomes_columns_that_keep_its_peak(tool: ModuleType) -> None:
    """The recorded toy: the highest plan and the highest reading survive the cutting into columns."""
    files = tool.open_run(ROOT / "traces" / "recorded-toy")
    one = tool.step_memory(files.directory)
    assert max(one.planned_bytes) == files.result.baseline_footprint_bytes + files.plan.live_bytes.max()
    readings = [event.footprint_bytes or 0 for event in files.events(files.timed_step)]
    assert max(one.footprint_bytes) == max(readings) > 0


def test_damaged_measurements_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "step-memory.json"
    path.write_text(tool.DATA.read_text().replace('"step_s"', '"step_seconds"'))
    with pytest.raises(InputError, match="step_seconds"):
        tool.read_measured(path)
