"""Points that wait in the worker until the test lets them go on; workers of a cluster import this file."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from memsim.sweep.execute import Done, Execute, Order, execute

LONGEST_WAIT_S = 60.0


def wait_until(there: Callable[[], bool]) -> None:
    """Wait for something, a minute at most."""
    end = time.monotonic() + LONGEST_WAIT_S
    while not there():
        assert time.monotonic() < end, "what the test waits for does not happen"
        time.sleep(0.02)


def held_back(directory: Path, victim: str) -> Execute:
    """Return ``execute`` with a note of its process for every attempt; ``victim`` then waits until it may go on."""
    return partial(_held_back, str(directory), victim)


def _held_back(directory: str, victim: str, order: Order) -> Done:
    (Path(directory) / f"{order.key}.{os.getpid()}").touch()
    if order.key == victim:
        wait_until((Path(directory) / "go").exists)
    return execute(order)


def attempts(directory: Path, key: str) -> list[int]:
    """Return the processes that began a point."""
    return [int(path.suffix[1:]) for path in directory.glob(f"{key}.*")]
