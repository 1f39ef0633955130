import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from memsim.cli.listing.devices import command
from memsim.errors import InputError
from memsim.simulator.device import UNITS
from memsim.simulator.device_file import built_in, find_device, format_device, host_file


def _run(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(command, list(arguments))


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path))


def test_lists_every_device() -> None:
    lines = _run().stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*built_in(), "host"]
    assert "not measured yet" in lines[-1]
    names = [item["name"] for item in json.loads(_run("--json", "-").stdout)["devices"]]
    assert names == built_in()


def test_lists_the_host_once_it_is_measured() -> None:
    host_file().parent.mkdir(parents=True)
    host_file().write_text(format_device(find_device("mac-m4")))
    assert _run().stdout.splitlines()[-1].startswith("host               Mac with an M4")


def test_shows_every_number_with_its_source(tmp_path: Path) -> None:
    out = _run("show", "iphone-15-pro-max").stdout
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert set(UNITS) <= set(rows)
    assert rows["foreground_limit_bytes"][1:] == ["3e+09", "3.072e+09", "3.5e+09", "B", "M", "rtabmap"]
    assert "https://github.com/introlab/rtabmap/pull/1446" in out
    path = tmp_path / "phone.json"
    assert _run("show", "iphone-15-pro-max", "--json", str(path)).exit_code == 0
    shown = json.loads(path.read_text())
    assert shown["numbers"]["ram_bytes"]["nominal"] == 8 << 30
    assert set(shown["sources"]) == {number["source"] for number in shown["numbers"].values()}


def test_a_user_s_file_is_shown_and_an_unknown_name_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(format_device(find_device("mac-m4")))
    assert _run("show", str(tmp_path / "mine.toml")).stdout == _run("show", "mac-m4").stdout
    assert isinstance(_run("show", "nokia").exception, InputError)


def test_a_device_of_ones_own_is_added_by_its_name(tmp_path: Path) -> None:
    mine = tmp_path / "my-phone.toml"
    mine.write_text(_run("show", "mac-m4", "--toml").stdout.replace("Mac with an M4", "My phone"))
    assert _run("add", str(mine)).stdout.startswith("my-phone: My phone")
    mine.unlink()
    assert find_device("my-phone").numbers == find_device("mac-m4").numbers
    assert "my-phone" in _run().stdout


@pytest.mark.parametrize("name", ["mac-m4", "host", ".hidden", "a b"])
def test_a_name_that_is_taken_or_strange_cannot_be_added(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.toml"
    path.write_text(format_device(find_device("mac-m4")))
    done = _run("add", str(path))
    assert isinstance(done.exception, InputError)
    assert "cannot be called" in str(done.exception)
