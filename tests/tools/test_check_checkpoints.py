"""The table of public checkpoints in the documents is that of the record, and the record meets what is asked."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RECORD = ROOT / "traces" / "public-checkpoints.json"


def test_the_documents_have_the_table_of_the_record() -> None:
    command = [sys.executable, str(ROOT / "tools" / "check_checkpoints.py"), "--table", str(RECORD)]
    table = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert table in (ROOT / "docs" / "checkpoints.md").read_text() + "\n"


def test_every_figure_of_the_record_is_within_what_is_asked() -> None:
    rows = json.loads(RECORD.read_text())
    assert len(rows) >= 9
    assert [row["name"] for row in rows if row["measured"] > row["asked"]] == []
