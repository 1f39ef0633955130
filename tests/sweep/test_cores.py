"""Processors for one process at a time."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memsim.sweep.cores import reserved_cores
from waiting_points import wait_until

AFFINITY = [sys.executable, "-c", "import os; print(*sorted(os.sched_getaffinity(0)))"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path))


def _of_child() -> set[int]:
    done = subprocess.run(AFFINITY, capture_output=True, text=True, check=True)
    return {int(word) for word in done.stdout.split()}


def test_a_child_runs_on_what_is_reserved_and_nothing_else_changes() -> None:
    before = os.sched_getaffinity(0)
    with reserved_cores(1):
        found = _of_child()
        assert len(found) == 1
        assert found <= before
    assert os.sched_getaffinity(0) == before
    with reserved_cores(len(before) + 5):  # there are no more
        assert _of_child() == before


def test_who_comes_later_gets_others_or_waits() -> None:
    available = os.sched_getaffinity(0)
    seen: list[set[int]] = []

    def later() -> None:
        with reserved_cores(1):
            seen.append(_of_child())

    with reserved_cores(len(available)):
        thread = threading.Thread(target=later)
        thread.start()
        thread.join(timeout=0.3)
        assert thread.is_alive() and not seen  # it waits
    thread.join()
    assert len(seen[0]) == 1
    if len(available) > 1:
        held = threading.Event()
        # Begun before this thread gives processors up, which it would inherit.
        thread = threading.Thread(target=lambda: (held.wait(), later()))
        thread.start()
        with reserved_cores(1):
            first = os.sched_getaffinity(0)
            held.set()
            thread.join()
        assert not seen[1] & first


def test_a_child_that_outlives_its_parent_holds_its_processors() -> None:
    with reserved_cores(len(os.sched_getaffinity(0))) as files:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=files)
    taken = threading.Event()

    def later() -> None:
        with reserved_cores(1):
            taken.set()

    thread = threading.Thread(target=later)
    thread.start()
    assert not taken.wait(0.3)
    child.communicate(b"\n")
    wait_until(taken.is_set)
    thread.join()
