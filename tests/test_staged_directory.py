import fcntl
import os
import threading

import pytest

from memsim.errors import InputError
from memsim.staged_directory import locked, staged_directory


def test_a_directory_appears_whole(tmp_path):
    target = tmp_path / "out"
    with locked(target), staged_directory(target) as staging:
        (staging / "file").write_text("x")
        assert not target.exists()
        assert staging.parent == tmp_path  # the same file system, so that the rename is atomic
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "file").read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, error):
    target = tmp_path / "out"
    with pytest.raises(error), locked(target), staged_directory(target) as staging:
        (staging / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".out.tmp" / "inner").mkdir(parents=True)
    (tmp_path / ".out.lock").touch()
    with locked(tmp_path / "out"), staged_directory(tmp_path / "out") as staging:
        assert list(staging.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_errors_of_the_system_become_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="cannot write .*/file/out: Not a directory"),
        locked(tmp_path / "file" / "out"),
    ):
        pass
    with pytest.raises(InputError, match="cannot write .*/none/out: No such file"), locked(tmp_path / "none" / "out"):
        pass
    target = tmp_path / "out"
    with pytest.raises(InputError, match="cannot write .*/out: No space left"), staged_directory(target):
        raise OSError(28, os.strerror(28))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_held_lock_is_refused_or_waited_for(tmp_path):
    target, waiting, entered = tmp_path / "out", threading.Event(), []

    def second():
        with locked(target, on_wait=waiting.set):
            entered.append(target.exists())

    with locked(target):
        with (
            pytest.raises(InputError, match=r"another memsim process \(\d+ since .*\) is writing .*out;"),
            locked(target),
        ):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        assert entered == []
        with staged_directory(target):
            pass
    thread.join(10)
    assert entered == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lock_file_that_its_holder_removed_does_not_count(tmp_path):
    """A waiter may get the lock on a file that is no longer there; another process may hold the new one."""
    target, path = tmp_path / "out", tmp_path / ".out.lock"
    old = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(old, fcntl.LOCK_EX)

    def replace_the_file():
        path.unlink()
        path.touch()
        os.close(old)

    with locked(target, on_wait=replace_the_file):
        new = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(new)
