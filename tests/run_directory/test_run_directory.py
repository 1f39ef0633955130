"""A run directory that came from elsewhere: nothing outside it is written, cut or removed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.run_directory.directory import existing_directory
from memsim.staged_directory import locked
from special_files import make_device, make_fifo, make_socket

NAMES = [
    *(".lock", ".work", "checkpoints", "checkpoints/steps.jsonl", "checkpoints/tokens.bin", "checkpoints/run.json"),
    *("events.jsonl", "seeds.jsonl", "program.jsonl", "result.json", "adapter_model.safetensors"),
]


def run_directory(path: Path, without: str) -> Path:
    for name in NAMES:
        if name in (".work", "checkpoints") or name.startswith(f"{without}/") or name == without:
            continue
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("own")
    return path


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_out_of_the_directory_is_refused_by_name(tmp_path: Path, name: str, dangling: bool) -> None:
    directory = run_directory(tmp_path / "run", without=name)
    target = tmp_path / "elsewhere"
    if name in (".work", "checkpoints") and not dangling:
        target.mkdir()
        (target / "mine").write_text("precious")
    elif not dangling:
        target.write_text("precious")
    (directory / name).symlink_to(target)
    before = tree(tmp_path)
    expected = f"run/{name} is a link, and going on would write where it points"
    with pytest.raises(InputError, match=expected), existing_directory(directory):
        pass
    assert tree(tmp_path) == before
    assert (directory / name).is_symlink()


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_device])
@pytest.mark.parametrize("name", [".lock", "events.jsonl", "checkpoints/steps.jsonl"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    directory = run_directory(tmp_path / "run", without=name)
    make(directory / name)
    before = os.lstat(directory / name)
    with pytest.raises(InputError, match=f"run/{name} is no regular file; remove it"), existing_directory(directory):
        pass
    assert os.path.samestat(os.lstat(directory / name), before)


def test_a_directory_of_its_own_files_is_used_even_through_a_link(tmp_path: Path) -> None:
    run_directory(tmp_path / "run", without=".lock")
    (tmp_path / "newest").symlink_to("run")
    with existing_directory(tmp_path / "newest") as directory:
        assert directory.work.is_dir()
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".out.lock").symlink_to("precious")
    with (
        pytest.raises(InputError, match=r"cannot lock .*\.out\.lock: it is a link; remove it"),
        locked(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("make", [make_fifo, make_device])
def test_a_lock_is_a_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / ".out.lock")
    with pytest.raises(InputError, match=r"cannot lock .*\.out\.lock: it is no regular file"), locked(tmp_path / "out"):
        pass
