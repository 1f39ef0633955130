"""``memsim sweep`` as a user types it: two workers and one, stopped and resumed, real runs under their caps."""

import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import psutil
import pytest

from capped_runs import cache, memsim_command, workers, write_model
from memsim.result_file import from_json

__all__ = ["cache"]

GRID = """
mode = "simulate"
models = ["tiny"]
seq_lens = SEQ_LENS
schedules = ["mebp", "tiled", "mezo"]
budgets = ["42MB", "1GB"]
[settings]
steps = 2
"""
ENDLESS = 'mode = "run"\nbudgets = ["20MB", "1GB"]\nmodels = ["MODEL"]\nseq_lens = [16]\n[settings]\nsteps = 100000'


def _sweep(directory: Path, *arguments: object, grid: str | None = None) -> "subprocess.CompletedProcess[str]":
    if grid is not None:
        (directory / "grid.toml").write_text(grid)
    command = memsim_command("sweep", "grid.toml", *arguments)
    return subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _rows(path: Path, columns: str = "*") -> list[dict[str, object]]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    return [dict(row) for row in connection.execute(f"SELECT {columns} FROM points ORDER BY key")]


@pytest.mark.parametrize("n_points", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_two_workers_find_what_one_finds(tmp_path: Path, n_points: int) -> None:
    lengths = list(range(8, 8 + n_points // 6))
    done = _sweep(tmp_path, "--workers", 2, "--json", "-", grid=GRID.replace("SEQ_LENS", str(lengths)))
    assert done.returncode == 0, done.stderr
    one = _sweep(tmp_path, "--workers", 0, "--out", "serial.sqlite")
    assert one.returncode == 0, one.stderr
    found, expected = _rows(tmp_path / "grid.sqlite"), _rows(tmp_path / "serial.sqlite")
    assert len(expected) == n_points
    for row in (*found, *expected):
        assert row.pop("seconds")
    assert found == expected
    assert {row["verdict"] for row in expected} == {"done", "killed"}
    # The record of a point, the table and the JSON say the same, in the order of the grid.
    record = from_json(str(expected[0]["record"]))
    assert (record.command, record.peak_footprint_bytes) == ("simulate", expected[0]["peak_footprint_bytes"])
    printed = json.loads(done.stdout)
    assert (printed["mode"], printed["done"], printed["failed"]) == ("simulate", n_points, 0)
    assert [point["seq_len"] for point in printed["points"]] == [n for n in lengths for _ in range(6)]
    lines = one.stdout.splitlines()
    assert len(lines) == n_points + 1
    assert " ".join(lines[0].split()) == "model tokens schedule budget verdict peak working set step s"
    assert ("mebp" in lines[1], "killed" in lines[1], "mezo" in lines[5], "fits" in lines[5]) == (True,) * 4
    assert "<svg" in (tmp_path / "serial.svg").read_text()
    assert one.stderr.count("\n") == n_points + 2  # what begins, a line a point, the files


def test_only_what_is_missing_is_done(tmp_path: Path) -> None:
    grid = 'mode = "simulate"\nmodels = ["tiny", "small"]\nseq_lens = [8]\n[settings]\nsteps = 1'
    first = _sweep(tmp_path, "--workers", 0, grid=grid)
    assert first.returncode == 1
    assert "small" in first.stdout and "failed: memsim simulate --model=small" in first.stdout
    assert "1 of 2 points failed; --retry-failed does them again" in first.stderr
    before = _rows(tmp_path / "grid.sqlite", "key, status, error, seconds")
    assert "no model called 'small'" in str(before)
    # A failed point is left alone, and so is a finished one; a new one is done.
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{")
    again = _sweep(tmp_path, "--workers", 0)
    assert "1 of 2 points to simulate" in again.stderr  # `small` is a path now: another point
    assert "small/config.json is not valid JSON" in again.stdout
    (tmp_path / "small" / "config.json").unlink()
    (tmp_path / "small").rmdir()
    again = _sweep(tmp_path, "--workers", 0)
    assert (again.returncode, again.stderr.count("points to simulate")) == (1, 0)
    kept = _rows(tmp_path / "grid.sqlite", "key, status, error, seconds")
    assert all(row in kept for row in before)
    retried = _sweep(tmp_path, "--workers", 0, "--retry-failed")
    assert "1 of 2 points to simulate" in retried.stderr
    assert retried.returncode == 1


def test_real_runs_have_caps_and_processors_of_their_own(cache: Path, disk: Path, tmp_path: Path) -> None:
    model = write_model(disk / "sweep-model").directory
    grid = (
        f'mode = "run"\nmodels = ["{model}"]\nseq_lens = [16, 24]\nbudgets = ["20MB", "400MB"]\n[settings]\nsteps = 1'
    )
    done = _sweep(tmp_path, "--scratch", disk / "sweep-scratch", grid=grid)
    assert done.returncode == 0, done.stderr
    rows = _rows(tmp_path / "grid.sqlite")
    assert sorted(str(row["verdict"]) for row in rows) == ["done", "done", "refused", "refused"]
    for row in rows:
        if row["verdict"] == "refused":
            assert (row["status"], row["fits"], row["record"]) == ("done", 0, None)
            assert "over the budget of 20.0 MB" in str(row["error"])
            continue
        record = from_json(str(row["record"]))
        assert (record.source, record.threads, record.budget_bytes) == ("measured", 1, 400 * 10**6)
        assert record.host.cores == 1
        assert row["peak_footprint_bytes"] == record.peak_footprint_bytes
        assert record.enforcement is not None
    assert list((disk / "sweep-scratch").iterdir()) == []


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_keeps_the_rows_and_leaves_nothing_running(
    cache: Path, disk: Path, tmp_path: Path, count: int
) -> None:
    model = write_model(disk / f"endless-{count}").directory
    (tmp_path / "grid.toml").write_text(ENDLESS.replace("MODEL", str(model)))
    command = memsim_command("sweep", "grid.toml", "--workers", count, "--scratch", disk / f"scratch-{count}")
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("1/2 "):
                break
        descendants = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal sends
        rest = process.stderr.read()
        process.wait()
    assert process.returncode == 130
    assert "1 of 2 points are kept; repeat the command to go on" in rest
    assert "Traceback" not in rest
    _, alive = psutil.wait_procs(descendants, timeout=20)
    assert alive == []
    assert workers() == []
    assert [row["verdict"] for row in _rows(tmp_path / "grid.sqlite")] == ["refused"]


@pytest.mark.parametrize(
    ("grid", "arguments", "code", "words"),
    [
        ('mode = "simulate"\nschedules = ["turbo"]', (), 2, "memsim simulate --schedule=turbo: Invalid value for "),
        ('mode = "simulate"\n[settings]\nsteps = 1.5', (), 2, "'1.5' is not a valid integer"),
        ('mode = "simulate"\n[settings]\nzo_eps = 1', (), 1, "settings.'zo_eps' is no setting of mode simulate: accum"),
        ('mode = "simulate"', ("--workers", -1), 2, "--workers -1 must be from 0 to 1024"),
        ('mode = "simulate"', ("--workers", 2, "--scheduler", "tcp://h:1"), 2, "give one of them"),
        ('mode = "simulate"', ("--out", "grid.toml"), 2, "must be three different files"),
        ('mode = "run"\nbudgets = ["9000GB"]', ("--workers", 2), 2, "2 runs of up to 8,583,068.8 MiB at a time"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(tmp_path: Path, grid: str, arguments: tuple, code: int, words: str) -> None:
    done = _sweep(tmp_path, *arguments, grid=grid)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "grid.sqlite").exists()
