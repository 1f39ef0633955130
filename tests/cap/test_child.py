import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from memsim.cap.child import ask_child, child_command, start_child

PROGRAM = """
import sys
from dataclasses import dataclass

@dataclass
class Asked:
    words: list[str]

print(__name__, Asked(sys.argv[1:]).words, sys.stdin.read() == "", flush=True)
print("first", file=sys.stderr)
print("last words", file=sys.stderr)
sys.exit(3)
"""
STARTER = """
import sys
from memsim.cap.child import child_command, start_child

child = start_child(child_command("waiting"), stdin=-1, stdout=-1, env={**__import__("os").environ})
print(child.pid, child.stdout.readline().decode(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return tmp_path


def test_a_child_is_the_module_with_its_arguments(programs: Path) -> None:
    (programs / "scripted.py").write_text(PROGRAM)
    code, output, complaint = ask_child("scripted", 1, programs)
    assert (code, complaint) == (3, "last words")
    assert output == f"__main__ ['1', '{programs}'] True\n"


def test_the_users_directory_is_not_where_a_child_looks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert ask_child("json.tool", "--help")[0] == 0


def test_a_child_dies_with_the_process_that_started_it(programs: Path) -> None:
    (programs / "waiting.py").write_text("import sys, time\nprint('waits', flush=True)\ntime.sleep(600)")
    with subprocess.Popen([sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid, word = starter.stdout.readline().split()
        child = psutil.Process(int(pid))
        starter.send_signal(signal.SIGKILL)
    assert word == b"waits"
    gone, _ = psutil.wait_procs([child], timeout=60)
    assert gone == [child]


def test_a_child_whose_parent_is_gone_already_runs_nothing(programs: Path) -> None:
    (programs / "scripted.py").write_text(PROGRAM)
    command = child_command("scripted")
    command[3] = str(1 << 30)  # no process has this id
    with start_child(command, stdout=subprocess.PIPE) as child:
        output, _ = child.communicate()
    assert (child.returncode, output) == (-signal.SIGKILL, b"")
