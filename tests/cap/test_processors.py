"""How many threads kernels get: affinity, quotas of both versions of cgroups, Numba's own variable."""

import os
from pathlib import Path

import pytest

from memsim.cap import processors
from memsim.cap.processors import available_threads
from memsim.errors import UsageError


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "processors", lambda: 8)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)


def machine(root: Path, version: int, quotas: dict[str, str]) -> Path:
    """Write a proc whose process is in the group /a/b, and the cpu controller's files of some groups."""
    (root / "proc/self").mkdir(parents=True)
    kind, options = ("cgroup", "rw,cpu,cpuacct") if version == 1 else ("cgroup2", "rw")
    (root / "proc/self/mountinfo").write_text(f"35 31 0:32 / {root / 'tree'} rw - {kind} cgroup {options}\n")
    (root / "proc/self/cgroup").write_text("3:cpuacct,cpu:/a/b\n" if version == 1 else "0::/a/b\n")
    for group in ("", "a", "a/b"):
        (root / "tree" / group).mkdir(parents=True, exist_ok=True)
    for name, text in quotas.items():
        (root / "tree" / name).write_text(f"{text}\n")
    return root / "proc"


@pytest.mark.parametrize(
    ("version", "quotas", "threads"),
    [
        (2, {"a/b/cpu.max": "300000 100000"}, 3),
        (2, {"a/b/cpu.max": "max 100000"}, 8),
        (2, {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, 2),
        (2, {"a/b/cpu.max": "50000 100000"}, 1),
        (2, {"a/b/cpu.max": "nonsense"}, 8),
        (1, {"a/b/cpu.cfs_quota_us": "200000", "a/b/cpu.cfs_period_us": "100000"}, 2),
        (1, {"a/b/cpu.cfs_quota_us": "-1", "a/b/cpu.cfs_period_us": "100000"}, 8),
        (1, {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "50000"}, 3),
        (1, {}, 8),
    ],
)
def test_a_quota_counts(tmp_path: Path, version: int, quotas: dict[str, str], threads: int) -> None:
    assert available_threads(machine(tmp_path, version, quotas)) == threads


def test_numbas_own_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = machine(tmp_path, 2, {"a/b/cpu.max": "300000 100000"})
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert available_threads(proc) == 1
    monkeypatch.setenv("NUMBA_NUM_THREADS", "64")
    assert available_threads(proc) == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", "\u0663", "1.5"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", text)
    with pytest.raises(UsageError, match="NUMBA_NUM_THREADS=.* is no number of threads"):
        available_threads()


def test_a_system_without_affinity_has_all_its_processors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    assert available_threads(tmp_path / "no proc") == 5
