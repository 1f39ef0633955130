import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from memsim import files
from memsim.errors import InputError
from special_files import make_device, make_full_device, make_socket


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_atomic_write_makes_the_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with files.atomic_write(target) as file:
        file.write(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
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


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Set the umask, and put it back at the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o000])
def test_a_new_file_has_the_rights_that_the_umask_leaves(
    tmp_path: Path, mask: int, umask: Callable[[int], int]
) -> None:
    umask(mask)
    files.write_text(tmp_path / "out", "text")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o666 & ~mask


def test_a_file_that_is_replaced_keeps_its_rights(tmp_path: Path, umask: Callable[[int], int]) -> None:
    umask(0o022)
    (tmp_path / "private").touch(0o600)
    files.write_text(tmp_path / "private", "secret")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    assert (tmp_path / "private").read_text() == "secret"


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "old").write_text("old")
    (tmp_path / "first").symlink_to("elsewhere/old")
    (tmp_path / "second").symlink_to("first")
    (tmp_path / "dangling").symlink_to("elsewhere/new")
    for name, target in (("second", "old"), ("dangling", "new")):
        files.write_text(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "elsewhere" / target).read_text() == name
    assert sorted(names(tmp_path / "elsewhere")) == ["new", "old"]
    assert sorted(names(tmp_path)) == ["dangling", "elsewhere", "first", "second"]


def test_a_link_to_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="cannot write .*loop: Too many levels of symbolic links"):
        files.write_text(tmp_path / "loop", "text")


@pytest.mark.parametrize("through_link", [False, True])
def test_a_device_is_written_and_stays_a_device(tmp_path: Path, through_link: bool) -> None:
    make_device(tmp_path / "null")
    (tmp_path / "link").symlink_to("null")
    before = os.lstat(tmp_path / "null")
    files.write_text(tmp_path / ("link" if through_link else "null"), "text")
    after = os.lstat(tmp_path / "null")
    assert stat.S_ISCHR(after.st_mode)
    assert (after.st_ino, after.st_rdev) == (before.st_ino, before.st_rdev)
    assert sorted(names(tmp_path)) == ["link", "null"]


def test_a_device_that_is_full_is_one_line(tmp_path: Path) -> None:
    make_full_device(tmp_path / "full")
    with pytest.raises(InputError, match=r"cannot write .*full: No space left on device$"):
        files.write_text(tmp_path / "full", "text")
    assert stat.S_ISCHR(os.lstat(tmp_path / "full").st_mode)


def test_a_pipe_is_written_to_its_reader_and_stays_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        files.write_text(tmp_path / "pipe", "text")
        assert read.result() == "text"
    assert stat.S_ISFIFO(os.lstat(tmp_path / "pipe").st_mode)
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("make", [make_socket, Path.mkdir])
def test_what_nothing_can_be_written_to_is_one_line_and_stays(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    before = os.lstat(tmp_path / "x")
    with pytest.raises(InputError, match="cannot write .*x: "):
        files.write_text(tmp_path / "x", "text")
    assert os.path.samestat(os.lstat(tmp_path / "x"), before)
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_keeps_its_order_and_its_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    path = tmp_path / name
    code = (
        "import sys; from pathlib import Path; from memsim import files\n"
        f"print('before'); files.write_text(Path({str(path)!r}), 'text\\n'); print('after')"
    )
    with (tmp_path / "out").open("w+") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
        inode = os.fstat(out.fileno()).st_ino
    assert (tmp_path / "out").read_text() == "before\ntext\nafter\n"
    assert (tmp_path / "out").stat().st_ino == inode


def test_what_a_dead_process_left_is_no_way_to_another_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    (tmp_path / f".out.{os.getpid()}.tmp").symlink_to("other")
    files.write_text(tmp_path / "out", "text")
    assert (tmp_path / "other").read_text() == "other"
    assert sorted(names(tmp_path)) == ["other", "out"]


def test_what_takes_the_place_of_a_file_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it became a pipe meanwhile"), files.atomic_write(tmp_path / "out") as file:
        file.write(b"text")
        os.mkfifo(tmp_path / "out")
    assert stat.S_ISFIFO(os.lstat(tmp_path / "out").st_mode)
    assert names(tmp_path) == ["out"]
