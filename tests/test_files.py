import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from memsim import files
from memsim.errors import InputError


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_atomic_write_makes_the_file_with_its_mode_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with files.atomic_write(target, mode=0o600) as file:
        file.write(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert names(tmp_path) == ["out.bin"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half way"), files.atomic_write(target) as file:
        file.write(b"new")
        raise RuntimeError("half way")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*out: No space left on device$"):
        files.write_text(tmp_path / "out", "text")
    assert names(tmp_path) == []


def test_a_missing_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write .*: No such file or directory"):
        files.write_text(tmp_path / "missing" / "out", "text")


@pytest.mark.parametrize("name", ["file/out", "n" * 300])
def test_an_impossible_path_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(InputError, match="cannot write"):
        files.write_text(tmp_path / name, "text")


def test_write_text_is_utf8(tmp_path: Path) -> None:
    files.write_text(tmp_path / "out", "größe ≤ 1\n")
    assert (tmp_path / "out").read_bytes() == "größe ≤ 1\n".encode()


def test_cache_dir_prefers_its_own_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("MEMSIM_CACHE", raising=False)
    assert files.cache_dir() == tmp_path / "xdg" / "memsim"
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "own"))
    assert files.cache_dir() == tmp_path / "own"
    assert (tmp_path / "own").is_dir()


def test_a_cache_that_cannot_be_created_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot create the cache .*; set MEMSIM_CACHE to a writable directory"):
        files.cache_dir()


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path))
    # Root may write everywhere, so the mode of a directory proves nothing here.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="cannot write the cache .*; set MEMSIM_CACHE to a writable directory"):
        files.cache_dir()


def _mounts(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    real: Callable[..., bytes] = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: os.fsencode(table) if str(self) == "/proc/mounts" else real(self)
    )


def test_file_system_takes_the_longest_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    _mounts(monkeypatch, "a / ext4 rw 0 0\nb /mem tmpfs rw 0 0\nc /mem/disk\\040two xfs rw 0 0\n")
    assert files.file_system(Path("/memory")) == "ext4"
    assert files.file_system(Path("/mem/x")) == "tmpfs"
    assert files.file_system(Path("/mem/disk two/x")) == "xfs"


@pytest.mark.parametrize("name", ["größe", "память", "back\\slash \ttab", "not-utf8-\udcff"])
def test_a_mount_of_any_name_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # As the kernel writes it: four characters in octal, every other byte as it is.
    written = name.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
    _mounts(monkeypatch, f"a / ext4 rw 0 0\nb /{written} tmpfs rw 0 0\n")
    assert files.file_system(Path(f"/{name}/x")) == "tmpfs"


def test_the_last_mount_on_a_directory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    _mounts(monkeypatch, "a / ext4 rw 0 0\nb /mem xfs rw 0 0\nc /mem tmpfs rw 0 0\n")
    assert files.file_system(Path("/mem/x")) == "tmpfs"


def test_this_machine_has_a_proc() -> None:
    assert files.file_system(Path("/proc/self")) == "proc"


def test_a_directory_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _mounts(monkeypatch, "a / ext4 rw 0 0\nb /mem tmpfs rw 0 0\n")
    with pytest.raises(InputError, match="scratch directory /mem/x is on tmpfs, which is memory"):
        files.require_disk(Path("/mem/x"), "scratch")
    files.require_disk(Path("/disk"), "scratch")


def test_free_space_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    files.require_free(tmp_path, 2**20, "the pack")
    with pytest.raises(InputError, match=r"the pack needs 2\.0 MiB in .*, which has 1\.0 MiB free"):
        files.require_free(tmp_path, 2**21, "the pack")
