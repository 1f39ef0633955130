"""Compiled kernels come from Numba's cache inside the cap: compiling there would take 100 MB and more."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from memsim.errors import WorkerError
from memsim.files import cache_dir


def kernel_environment() -> dict[str, str]:
    """Return the environment of a process that runs kernels: where compiled code is kept, how threads wait."""
    directory = cache_dir(writable=False).absolute() / "kernels"  # its processes run in another directory
    # A thread that waits for the others gives its processor up after tens of microseconds. GNU's OpenMP waits 30 times
    # as long, in which it may hold up the very thread it waits for: on a busy machine steps took 8 times as long.
    waiting = {"GOMP_SPINCOUNT": "10000"}
    cache = {
        "NUMBA_CACHE_DIR": str(directory),
        "NUMBA_CACHE_LOCATOR_CLASSES": "memsim.execution.cache_locator.CacheLocator",
    }
    return waiting | os.environ | cache | {"OPENBLAS_NUM_THREADS": "1"}


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
            raise WorkerError(f"kernel {name} {NOT_COMPILED}")

        def on_end(self, event: event.Event) -> None:
            """Nothing ends that did not start."""

    listener = _Abort()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)


@contextmanager
def loading() -> Iterator[None]:
    """Make one sentence of what Numba says when it cannot load a kernel, or start its threads.

    Raises:
        WorkerError: A kernel's file in the cache was cut short, or the machine has no such threads.
    """
    try:
        yield
    except (EOFError, pickle.UnpicklingError) as error:
        raise WorkerError(f"a kernel {NOT_COMPILED}: its file was cut short ({error})") from error
    except ValueError as error:
        if "threading layer" not in str(error):
            raise
        layer = os.environ.get("NUMBA_THREADING_LAYER", "default")
        raise WorkerError(
            f"NUMBA_THREADING_LAYER={layer} is not installed here; unset it, or set it to omp or workqueue"
        ) from error
