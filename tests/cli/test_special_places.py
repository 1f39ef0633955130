"""Commands that meet a pipe, a device or a link where a file is, or was told to be written."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from command import Command
from recorded import write_run
from special_files import make_device

RECORDED = Path(__file__).parent.parent.parent / "traces" / "recorded-toy"
PHONE = "iphone-15-pro-max"


@pytest.fixture
def memsim(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


# Command, with RUN where its run is, and the file of that run which it reads.
READS = [
    (["diff", "RUN", "RUN"], "result.json"),
    (["diff", "RUN/result.json", "RUN"], "result.json"),
    (["diff", "RUN", "RUN"], "events.jsonl"),
    (["profile", "memory", "RUN"], "program.jsonl"),
    (["profile", "memory", "RUN"], "events.jsonl"),
    (["profile", "layers", "RUN"], "result.json"),
    (["report", "RUN"], "result.json"),
    (["report", "RUN"], "program.jsonl"),
    (["report", "RUN"], "events.jsonl"),
    (["replay", "RUN"], "program.jsonl"),
    (["replay", "RUN"], "result.json"),
    (["replay", "RUN"], "memray.bin"),
    (["replay", "RUN/memray.bin"], "memray.bin"),
    (["replay-seeds", "RUN/seeds.jsonl", "--out", "out"], "seeds.jsonl"),
    (["run", "--resume", "RUN", "--steps", 9], "checkpoints/run.json"),
    (["check", "--baseline", "RUN/baseline.json"], "baseline.json"),
    (["simulate", "--model", "tiny", "--device", "RUN/phone.toml"], "phone.toml"),
    (["sweep", "RUN/grid.toml"], "grid.toml"),
    (["run", "--budget", "1GB", "--plan", "RUN/plan.json"], "plan.json"),
    (["report", "RUN", "--decompression", "RUN/shares.json"], "shares.json"),
    (["simulate", "--model", "RUN/config.json"], "config.json"),
]


@pytest.mark.parametrize(("arguments", "name"), READS, ids=[f"{words[0]} {name}" for words, name in READS])
def test_a_pipe_in_the_place_of_a_file_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memsim: Command, arguments: list, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RECORDED, "RUN")
    path = tmp_path / "RUN" / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    line = memsim.refused(*arguments)
    assert path.name in line or "is not a run" in line or "no run that could go on" in line
    assert stat.S_ISFIFO(os.lstat(path).st_mode)


def written_by(option: str) -> list[object]:
    """Return a command that writes a file with ``option``, but for the file's name."""
    return {
        "--json": ["simulate", "--model", "tiny", "--json"],
        "--emit": ["plan", "--model", "tiny", "--seq-len", 16, "--device", PHONE, "--emit"],
        "--plot": ["plan", "--model", "tiny", "--seq-len", 16, "--device", PHONE, "--plot"],
        "--perfetto": ["report", "run", "--perfetto"],
        "-o": ["report", "run", "-o"],
    }[option]


@pytest.mark.parametrize("option", ["--json", "--emit", "--plot", "--perfetto", "-o"])
def test_told_to_write_to_a_device_or_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memsim: Command, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    make_device(tmp_path / "null")
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    done = memsim(*written_by(option), "null")
    assert done.code == 0, done
    assert stat.S_ISCHR(os.lstat("null").st_mode)
    done = memsim(*written_by(option), "link")
    assert done.code == 0, done
    assert (tmp_path / "link").is_symlink()
    assert len((tmp_path / "target").read_text()) > 100
    assert sorted(os.listdir()) == ["link", "null", "run", "target"]  # noqa: PTH208
