"""Compiled kernels come from Numba's cache inside the cap: compiling there would take 100 MB and more."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from memsim.errors import WorkerError
from memsim.files import cache_dir


def kernel_environment() -> dict[str, str]:
    """Return the environment of a process that runs kernels: where compiled code is kept, how threads wait."""
    directory = cache_dir().absolute() / "kernels"  # its processes run in another directory
    # A thread that waits for the others gives its processor up after tens of microseconds. GNU's OpenMP waits 30 times
    # as long, in which it may hold up the very thread it waits for: on a busy machine steps took 8 times as long.
    waiting = {"GOMP_SPINCOUNT": "10000"}
    return waiting | os.environ | {"NUMBA_CACHE_DIR": str(directory), "OPENBLAS_NUM_THREADS": "1"}


NOT_COMPILED = "is not in the kernel cache"


@contextmanager
def forbid_compilation() -> Iterator[None]:
    """Raise on the first kernel that Numba would compile inside this block.

    Raises:
        WorkerError: A kernel was not in the cache.
    """
    from numba.core import event

    class _Abort(event.Listener):  # type: ignore[misc]
        def on_start(self, event: event.Event) -> None:
            name = event.data["dispatcher"].py_func.__qualname__
            raise WorkerError(f"kernel {name} {NOT_COMPILED}; run the command again to compile it")

        def on_end(self, event: event.Event) -> None:
            """Nothing ends that did not start."""

    listener = _Abort()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)
