import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from memsim.cli.predicting import validate_work
from memsim.cli.predicting.validate import command
from memsim.simulator.published_figures import TABLE
from memsim.simulator.validation import validate_table

CELLS = TABLE[:2] + TABLE[6:8]  # two models; all five are in tests/simulator


def test_prints_every_cell_and_hides_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(validate_work, "validate_table", lambda device: validate_table(device, CELLS))
    path = tmp_path / "validation.json"
    result = CliRunner().invoke(command, ["--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for cell in CELLS:
        rows = [line for line in lines if line.split()[:2] == [cell.model, cell.method]]
        assert [row.split()[2] for row in rows] == [f"{cell.peak_bytes / 1e6:.0f}", f"{cell.step_s:.2f}"]
    assert sum(line.startswith("model held out: mean error") for line in lines) == 2
    assert "with the whole table in view" in lines[-1]
    record = json.loads(path.read_text())
    assert [item["published"]["step_s"] for item in record["predictions"]] == [cell.step_s for cell in CELLS]
    assert len(record["errors"]) == 4 and len(record["fits"]) == 3
