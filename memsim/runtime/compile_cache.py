"""Compiled kernels come from Numba's cache inside the cap: compiling there would take 100 MB and more.

``python -m memsim.runtime.compile_cache THREADS compile|f32|bf16`` is the process that fills the cache, or that loads
from it what a worker of a compute path loads and prints its own footprint. So nothing is imported here that a worker
does not need.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from memsim.errors import WorkerError
from memsim.files import cache_dir
from memsim.runtime.footprint import process_footprint


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


def main() -> None:
    """Compile every kernel and print the fastest compute path and all; or load one and print this footprint."""
    threads, task = int(sys.argv[1]), sys.argv[2]
    if task == "compile":
        from memsim.runtime.kernels import compute_paths, fastest_compute

        print(fastest_compute(threads), *compute_paths())
        return
    with forbid_compilation():
        from memsim.runtime.kernels import finish_loading, load_kernels

        kernels = load_kernels(task, threads)
    import memsim.runtime.session
    import memsim.runtime.worker
    import memsim.weights.adapters  # noqa: F401

    finish_loading()
    print(process_footprint(), len(kernels))  # held until now, with the workspaces that they keep


if __name__ == "__main__":
    main()
