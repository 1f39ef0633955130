"""How many threads may compute at once: by the processors that this process may use, quotas, and Numba's own limit."""

import os
from pathlib import Path

from memsim.cap.cgroups import find_hierarchy
from memsim.cap.group import Unavailable, read_control
from memsim.cap.linux import PROC
from memsim.errors import UsageError

_NUMBA = "NUMBA_NUM_THREADS"


def processors() -> int:
    """Return the logical processors that this process may use (of all, where the system does not say)."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_threads(proc: Path = PROC) -> int:
    """Return how many threads kernels can use here: one for each processor, within quotas and ``NUMBA_NUM_THREADS``.

    Threads above a quota wait for its next period, and the others wait for them: so part of a processor counts only
    where there is no whole one.

    Raises:
        UsageError: ``NUMBA_NUM_THREADS`` is not a positive whole number.
    """
    limits = [processors(), *map(int, _quotas(proc))]
    text = os.environ.get(_NUMBA, "").strip()
    if text:
        if not (text.isascii() and text.isdecimal() and int(text)):
            raise UsageError(f"{_NUMBA}={ascii(text)} is no number of threads; unset it, or write one such as 2")
        limits.append(int(text))
    return max(1, min(limits))


def _quotas(proc: Path) -> list[float]:
    """Return the processors that each cgroup around this process may use, where it has a quota; none but on Linux."""
    found = []
    for version in (1, 2):
        try:
            hierarchy = find_hierarchy(version, proc, "cpu")
        except (Unavailable, OSError):
            continue
        for group in (hierarchy.own, *hierarchy.own.parents):
            if not group.is_relative_to(hierarchy.mount):
                break
            found += _quota_of(version, group)
    return found


def _quota_of(version: int, group: Path) -> list[float]:
    """Return the quota of one group in processors, if it has one (version 1 writes -1, version 2 "max")."""
    if version == 1:
        words = [read_control(group / f"cpu.cfs_{part}_us") for part in ("quota", "period")]
    else:
        words = read_control(group / "cpu.max").split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        return []
    return [int(words[0]) / int(words[1])]
