"""How a command ends when its streams are closed or full, its limits are small, or it is told to stop."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memsim.cap import open as opening
from memsim.cap.group import Unavailable
from memsim.run_directory.directory import make_unsettled, remove_leftovers
from memsim.system_limits import system_refusal

MODELS = f"{sys.executable} -m memsim models"


def shell(line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, env=os.environ | environment, check=False
    )


@pytest.mark.parametrize(
    ("stream", "reason"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")]
)
def test_results_that_cannot_be_printed_end_in_one_line(stream: str, reason: str) -> None:
    done = shell(f"{MODELS} {stream}")
    assert (done.returncode, done.stderr) == (1, f"memsim: standard output: {reason}\n")


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_complaints_that_cannot_be_printed_change_no_exit_code(stream: str) -> None:
    assert "qwen2.5-0.5b" in shell(f"{MODELS} {stream}").stdout
    refused = shell(f"{sys.executable} -m memsim plan --budget nonsense {stream}")
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", "")


def test_what_an_encoding_lacks_is_printed_as_its_escape(tmp_path: Path) -> None:
    missing = tmp_path / "\u0645"
    done = shell(f"{sys.executable} -m memsim diff '{missing}' '{missing}'", PYTHONIOENCODING="latin-1")
    assert done.returncode == 1
    assert "\\u0645" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; raise `ulimit -n`"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "raise `ulimit -u`"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "raise this process's own limits"),
        (MemoryError(), "memory ran out outside of the cap"),
        (RuntimeError("can't start new thread"), "no thread can be started; raise `ulimit -u`"),
        (ImportError("x.so: failed to map segment from shared object"), "memory ran out outside of the cap"),
        (OSError(errno.EIO, "Input/output error", "/a/file"), "/a/file: Input/output error"),
    ],
)
def test_a_limit_of_the_system_is_named(error: BaseException, line: str) -> None:
    said = system_refusal(error)
    assert said is not None
    assert line in said
    assert "a file" not in said.split()


def test_a_fault_of_memsim_itself_is_not_hidden() -> None:
    assert system_refusal(RuntimeError("a fault")) is None
    assert system_refusal(ImportError("No module named 'x'")) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_ends_a_command_as_ctrl_c_does(number: signal.Signals) -> None:
    code = (
        "import os, memsim.cli as c, memsim.cli.streams\n"
        f"c.cli.main = lambda **_: os.kill(os.getpid(), {int(number)})\n"
        "c.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "memsim: interrupted\n")


def test_a_group_that_nobody_joins_in_time_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_JOIN_S", 0.05)
    with pytest.raises(Unavailable, match="no process joined"):
        opening._try_to_join(["/bin/sh", "-c", "exec sleep 30", "group"])


def test_the_next_command_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / ".work").mkdir()
    (run / ".lock").write_text("1 since long ago\n")
    (run / ".result.json.1.tmp").write_text("{")
    (run / "steps.jsonl").write_text("kept")
    unsettled = make_unsettled(tmp_path)
    foreign = tmp_path / "foreign"
    (foreign / ".work").mkdir(parents=True)
    (foreign / ".lock").write_text("another program's")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "steps.jsonl"]
    assert unsettled.exists()
    assert (foreign / ".work").exists() and (foreign / ".lock").exists()
