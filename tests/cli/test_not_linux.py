"""Without the names that only Linux has: what asks for a model or a record works, the rest says what it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import foreign
from capped_runs import private_cache
from recorded import write_run

# Of `os`, what Python has on Linux alone.
GONE = [
    "copy_file_range", "eventfd", "memfd_create", "O_DIRECT", "O_TMPFILE", "pidfd_open", "posix_fadvise",
    "posix_fallocate", "POSIX_FADV_DONTNEED", "POSIX_FADV_NORMAL", "POSIX_FADV_RANDOM", "POSIX_FADV_WILLNEED",
    "sched_getaffinity", "sched_setaffinity", "setns", "splice", "unshare",
]  # fmt: skip
PRELOAD = f"import os\nfor name in {GONE!r}:\n    if hasattr(os, name):\n        delattr(os, name)\n"
GRID = 'mode = "simulate"\nmodels = ["tiny"]\nseq_lens = [8]\n[settings]\nsteps = 1'


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(PRELOAD)
    write_run(tmp_path / "recorded")
    (tmp_path / "grid.toml").write_text(GRID)
    private_cache(tmp_path / "cache")
    return tmp_path


def memsim(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(directory / "site"), *sys.path])}
    environment |= {"MEMSIM_CACHE": str(directory / "cache")}  # with kernels that are compiled
    command = [sys.executable, "-m", "memsim", *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        "plan --model tiny --budget 200MB", "simulate --model tiny", "models", "devices", "validate",
        "report recorded -o page.html", "diff recorded recorded", "profile memory --model tiny",
        "profile layers recorded", "sweep grid.toml --workers 0",
    ],
)  # fmt: skip
def test_it_works(directory: Path, command: str) -> None:
    done = memsim(directory, *command.split())
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_is_packed(directory: Path) -> None:
    foreign.write(directory / "model")
    done = memsim(directory, "pack", "model", "out")
    assert done.returncode == 0, done.stderr
    assert (directory / "out" / "pack.json").is_file()


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("run --budget 1GB --model tiny", "a capped run"),
        ("compare --model tiny --schedules mebp,tiled --steps 1 --budget 1GB", "a capped run"),
        ("bench footprint --models tiny", "a capped run"),
        ("devices calibrate", "measuring this machine"),
    ],
)
def test_what_needs_linux_says_so_in_one_line(directory: Path, command: str, what: str) -> None:
    done = memsim(directory, *command.split())
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("memsim: ")
    assert f"{what} needs Linux; this system has no " in last
    assert "Traceback" not in done.stderr
