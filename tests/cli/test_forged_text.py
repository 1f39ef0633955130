"""Names in files that would write lines, colours or directions of their own onto a terminal or a page."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import memsim.cli
from capped_runs import config_for
from command import Command
from memsim.regression.baseline import from_run, write_baseline
from memsim.run_directory.checkpoints import DIRECTORY
from memsim.run_directory.settings_file import RUN_FILE, Identity, write_run_file
from memsim.runtime.config import RunConfig
from memsim.runtime.origin import Origin
from memsim.simulator.device_file import find_device, format_device
from recorded import record, toy_run_plan, write_run, write_shares

FORGED = "toy\nfake: fits\r\x1b[2J\x1b]0;title\x07\u202e\u2028<b>$x^$"
SHOWN = r"toy\nfake: fits\r\x1b[2J\x1b]0;title\x07\u202e\u2028"
CLI = Path(memsim.cli.__file__).parent
IDENTITY = Identity(
    model_hash="h", texts={}, program="p", threads=1, compute="f32", cpu="c", kernels="k", versions={"numpy": "1"}
)
ORIGIN = Origin(started="2026-12-01T00:00:00+00:00", commands=(), files={})


@pytest.fixture
def memsim(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


def test_text_leaves_by_one_way() -> None:
    """Only ``say`` prints, and ``devices show --toml``, whose text is a file with everything else escaped."""
    found = {
        path.name for path in CLI.rglob("*.py") if re.search(r"click\.(s?echo|secho)\(|[^.\w]print\(", path.read_text())
    }
    assert found == {"say.py", "devices.py"}


def assert_plain(text: str) -> None:
    """Every line of ``text`` is printable, and none is the forged one."""
    for line in text.split("\n"):
        assert line.isprintable(), line
        assert not line.startswith("fake"), text


def test_a_model_in_a_record(tmp_path: Path, memsim: Command) -> None:
    run = write_run(tmp_path / "run", model=FORGED, schedule=FORGED)
    done = memsim("diff", run, run)
    assert done.code == 0
    assert_plain(done.out)
    assert f"A  {SHOWN}" in done.out


@pytest.mark.parametrize("command", ["memory", "layers"])
def test_names_of_values_and_of_parts(tmp_path: Path, memsim: Command, command: str) -> None:
    write_run(tmp_path / "run")
    program = (tmp_path / "run" / "program.jsonl").read_text()
    forged = json.dumps(FORGED)[1:-1]
    (tmp_path / "run" / "program.jsonl").write_text(program.replace('"embed"', f'"{forged}"'))
    done = memsim("profile", command, tmp_path / "run", "--plot", tmp_path / "p.svg")
    assert_plain(done.out + done.err)


def test_a_replayed_record(tmp_path: Path, memsim: Command) -> None:
    recorded = Path(__file__).parent.parent.parent / "traces" / "recorded-toy"
    for name in ("program.jsonl", "memray.bin"):
        (tmp_path / name).symlink_to(recorded / name)
    result = json.loads((recorded / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(result | {"model": FORGED}))
    done = memsim("replay", tmp_path)
    assert_plain(done.out + done.err)
    assert SHOWN in done.out


def test_the_title_of_a_device(tmp_path: Path, memsim: Command) -> None:
    device = find_device("iphone-15-pro-max")
    path = tmp_path / "phone.toml"
    path.write_text(format_device(replace(device, title=FORGED)))
    for arguments in (["simulate", "--model", "tiny", "--device"], ["devices", "show"], ["devices", "show", "--toml"]):
        done = memsim(*arguments, path)
        assert done.code == 0, done
        assert_plain(done.out + done.err)
    assert SHOWN in memsim("simulate", "--model", "tiny", "--device", path).out
    assert find_device(str(path)).title == FORGED


@pytest.mark.parametrize("title", ["\U000e0041", "\x7f", "\\\"'", "a\tb"])
def test_a_title_comes_back_from_the_file_that_is_shown(tmp_path: Path, title: str) -> None:
    device = replace(find_device("iphone-15-pro-max"), title=title)
    (tmp_path / "phone.toml").write_text(format_device(device))
    assert find_device(str(tmp_path / "phone.toml")).title == title


@pytest.mark.parametrize("changes", [{"scratch": FORGED}, {"model": FORGED}, {"schedule": FORGED}])
def test_settings_of_a_run_that_goes_on(tmp_path: Path, memsim: Command, changes: dict) -> None:
    directory = tmp_path / "run" / DIRECTORY
    directory.mkdir(parents=True)
    write_run_file(directory, config_for(tmp_path / "model", None), IDENTITY, ORIGIN)
    file = json.loads((directory / RUN_FILE).read_text())
    file["settings"] |= changes  # which no checked setting lets in
    (directory / RUN_FILE).write_text(json.dumps(file))
    done = memsim("run", "--resume", tmp_path / "run")
    assert done.code in (1, 2)
    assert_plain(done.err)
    assert done.err.splitlines()[-1].startswith("memsim: ")


def test_a_baseline(tmp_path: Path, memsim: Command) -> None:
    run = write_run(tmp_path / "run")
    config = RunConfig(budget_bytes=10**9, model="tiny")
    found = from_run(run, config, record(toy_run_plan(), model=FORGED))
    write_baseline(tmp_path / "b.json", replace(found, peak_by_op_bytes={FORGED: 1}))
    done = memsim("diff", tmp_path / "b.json", run)
    assert_plain(done.out + done.err)
    assert SHOWN in done.out


def test_a_page_shows_what_it_would_hide(tmp_path: Path, memsim: Command) -> None:
    run = write_run(tmp_path / "run\u202e", model=FORGED, peak_by_value={FORGED: 7})
    device = find_device("iphone-15-pro-max")
    (tmp_path / "phone.toml").write_text(format_device(replace(device, title=FORGED)))
    shares = write_shares(tmp_path / "shares.json")
    shares.write_text(shares.read_text().replace('"here"', json.dumps(FORGED)))
    page = tmp_path / "page.html"
    done = memsim("report", run, "-o", page, "--device", tmp_path / "phone.toml", "--decompression", shares)
    assert done.code == 0, done
    html = page.read_text(encoding="utf-8")
    for character in "\u202e\u2028\x1b\x07\r":
        assert character not in html
    assert r"\u202e" in html
    assert "<b>" not in html


def test_labels_of_a_plot(tmp_path: Path) -> None:
    from memsim.reports.plots import plot_shares
    from memsim.reports.shares_file import read_shares

    shares = write_shares(tmp_path / "shares.json")
    for label in (FORGED, r"$\\notatex$", "_hidden"):
        (found,) = read_shares(shares)
        plot_shares(tmp_path / "p.svg", [replace(found, where=label)])
        assert "\x1b" not in (tmp_path / "p.svg").read_text(encoding="utf-8")
