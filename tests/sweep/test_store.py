"""The file of rows: what is written is read back, and a damaged or strange file is refused in one line."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.sweep.row import Row
from memsim.sweep.store import APPLICATION_ID, TABLE, open_store

ROW = Row(
    key="k1", mode="run", model="tiny", seq_len=8, lora_rank=None, schedule="mebp", budget_bytes=10**9, device=None,
    settings="{}", command="memsim run", status="done", error=None, fits=True, verdict="done",
    peak_footprint_bytes=5, peak_working_set_bytes=3, step_s=0.5, seconds=1.5, record="{...}",
)  # fmt: skip


def test_rows_come_back_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    path, second = tmp_path / "s.sqlite", replace(ROW, key="k2", status="failed", fits=None, error="no", step_s=None)
    with open_store(path) as store:
        store.add(ROW)
        store.add(replace(second, status="done"))
        store.add(second)  # a later one takes the place of an earlier one
    with open_store(path) as store:
        assert store.statuses() == {"k1": "done", "k2": "failed"}
        found = list(store.rows(["k2", "k0", "k1"]))
    assert found == [replace(second, record=None), replace(ROW, record=None)]
    (record,) = sqlite3.connect(path).execute("SELECT record FROM points WHERE key = 'k1'").fetchone()
    assert record == "{...}"


def test_two_sweeps_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with open_store(path), pytest.raises(InputError, match="another memsim process"), open_store(path):
        pass


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"no database" * 1000),
        lambda path: sqlite3.connect(path).execute("CREATE TABLE accounts (owner TEXT)").connection.commit(),
        lambda path: sqlite3.connect(path).executescript(f"PRAGMA application_id={APPLICATION_ID}; CREATE TABLE a(b)"),
        lambda path: sqlite3.connect(path).executescript(
            f"PRAGMA application_id={APPLICATION_ID}; {TABLE}; "
            "CREATE TRIGGER t AFTER INSERT ON points BEGIN DELETE FROM points; END"
        ),
        lambda path: path.mkdir(),
    ],
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "s.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(InputError, match="s.sqlite") as caught, open_store(path):
        pass
    assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


@pytest.mark.parametrize(
    ("column", "value"), [("seconds", "soon"), ("fits", 7), ("status", "perhaps"), ("seq_len", -1), ("mode", b"\xff")]
)
def test_a_row_that_cannot_be_is_refused(tmp_path: Path, column: str, value: object) -> None:
    path = tmp_path / "s.sqlite"
    with open_store(path) as store:
        store.add(ROW)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE points SET {column} = ?", (value,))
    with open_store(path) as store, pytest.raises(InputError, match=f"row 'k1': {column} must be"):
        list(store.rows(["k1"]))


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its directory does not exist"), open_store(tmp_path / "no" / "s.sqlite"):
        pass
