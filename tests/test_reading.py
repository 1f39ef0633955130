"""Opening what others wrote: only regular files, through links, and no more of them than they may have."""

import os
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.reading import open_regular, read_bytes
from special_files import SPECIAL


@pytest.mark.parametrize("what", SPECIAL)
def test_what_is_no_regular_file_is_refused_without_reading(tmp_path: Path, what: str) -> None:
    SPECIAL[what](tmp_path / "x")
    (tmp_path / "link").symlink_to("x")
    for path in (tmp_path / "x", tmp_path / "link"):
        with pytest.raises(InputError, match=f"^cannot read .*{path.name}: it is {what}, not a regular file$"):
            open_regular(path)
    with pytest.raises(InputError, match=f"^cannot read the text: it is {what}"):
        open_regular(tmp_path / "x", "the text")


def test_a_thing_that_takes_the_place_of_a_file_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    regular = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda path: regular)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (iterating would hold one more)
    with pytest.raises(InputError, match="it is a pipe"):
        open_regular(tmp_path / "pipe")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_file_is_read_through_links(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"data")
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "second").symlink_to("link")
    with open_regular(tmp_path / "second") as file:
        assert file.read() == b"data"
    assert read_bytes(tmp_path / "second", 4, "such a file") == b"data"


@pytest.mark.parametrize("name", ["missing", "n" * 300, "with\0zero"])
def test_what_is_not_there_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="^cannot read .*: "):
        open_regular(tmp_path / name)


def test_a_link_to_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="cannot read .*loop: Too many levels of symbolic links"):
        open_regular(tmp_path / "loop")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="sparse is larger than the 2 KiB that a plan may have"):
        read_bytes(tmp_path / "sparse", 2048, "a plan")
