"""Tables in the documents are those of their records, and the records are as they should be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
RECORD = ROOT / "traces" / "public-checkpoints.json"
FAULTS = ROOT / "traces" / "faults.json"


@pytest.mark.parametrize(
    ("tool", "record", "document"),
    [("check_checkpoints.py", RECORD, "checkpoints.md"), ("faults.py", FAULTS, "reliability.md")],
)
def test_the_documents_have_the_table_of_the_record(tool: str, record: Path, document: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / tool), "--table", str(record)]
    table = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert table in (ROOT / "docs" / document).read_text() + "\n"


def test_no_fault_of_the_record_ended_otherwise_than_it_should() -> None:
    rows = json.loads(FAULTS.read_text())
    assert len(rows) >= 30
    assert [row["fault"] for row in rows if not row["right"]] == []


def test_every_figure_of_the_record_is_within_what_is_asked() -> None:
    rows = json.loads(RECORD.read_text())
    assert len(rows) >= 9
    assert [row["name"] for row in rows if row["measured"] > row["asked"]] == []
