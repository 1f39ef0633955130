"""Processors for one process at a time: real runs beside each other do not take each other's."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from memsim.cap.linux import require_linux
from memsim.errors import InputError
from memsim.files import cache_dir

_POLL_S = 0.05


@contextmanager
def reserved_cores(count: int) -> Iterator[tuple[int, ...]]:
    """Hold processors of this machine, waiting until so many are free; children of this thread run on them alone.

    Every process of this user that asks here gets others. A child that is given the yielded files holds them for as
    long as it lives, even if this process is killed.

    Args:
        count: How many; all that this process may use, if that is fewer.

    Yields:
        Descriptors of the locks.

    Raises:
        InputError: The cache cannot be written, or the kernel refuses.
    """
    require_linux("reserving processors")
    available = os.sched_getaffinity(0)
    with ExitStack() as stack:
        try:
            held = _wait_for(min(count, len(available)), sorted(available), stack)
            stack.callback(os.sched_setaffinity, 0, available)
            os.sched_setaffinity(0, held)  # of this thread; what it starts inherits it
        except OSError as error:
            raise InputError(f"cannot reserve {count} processors: {error.strerror or error}") from error
        yield tuple(held.values())


def _wait_for(count: int, cores: list[int], stack: ExitStack) -> dict[int, int]:
    """Return (processor -> descriptor of its lock) for ``count`` of them."""
    directory = cache_dir() / "cores"
    directory.mkdir(exist_ok=True)
    while True:
        held: dict[int, int] = {}
        for core in cores:
            if len(held) < count and (descriptor := _lock(directory / f"{core}.lock")) is not None:
                held[core] = descriptor
        if len(held) == count:
            for descriptor in held.values():
                stack.callback(os.close, descriptor)
            return held
        for descriptor in held.values():  # holding some while waiting for more would make others wait for ever
            os.close(descriptor)
        time.sleep(_POLL_S)


def _lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
