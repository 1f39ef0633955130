"""Before the first run: compile the kernels outside any cap, and measure what a process costs before any weight."""

from contextlib import suppress

from memsim.errors import InputError
from memsim.progress_types import StageProgress
from memsim.runtime.kernels.compiling import compile_kernels, entries_below, kernel_child, one_at_a_time
from memsim.runtime.kernels.marker import Prepared, marker_path, read_marker, write_marker
from memsim.search.needs import Needs, capped_process

WORKER_BYTES = 800_000
NODE_BYTES = 1_850
"""What a worker holds before its first step beside its kernels: the description of its weights, the thread that checks
them; and for each node of a loaded program the Python objects that it and its values are. Measured: 0.7 MB with 140
nodes, 1.6 MB with 430, 3.0 MB with 1,016, 4.5 MB with 2,120."""

SESSION_BYTES = 1_400_000
SESSION_NODE_BYTES = 600
"""What the first step adds beside what is planned: random numbers, the thread of the scratch file, messages; and for
each node the arrays through which kernels see the arena. Measured in the same runs: 1.1 to 1.7 MB,
1.4, 2.1 and 2.6 MB."""

_RECORDER_BYTES = 1_000_000
_RECORDER_NODE_BYTES = 2_000
"""What recording costs the worker: memray and its tables, and for each node the frames of it and of its values.
Measured in eight steps, six of them recorded, above what is planned for the rest of the run: at most 0.6 MB with 79
nodes, 2.0 MB with 286, 3.8 MB with 838, 2.4 MB with 1,666, 4.6 MB with 1,942, 4.3 MB with 2,120, 4.4 MB with 2,472,
6.3 to 7.7 MB with 2,770."""


def recorder_bytes(n_nodes: int) -> int:
    """Return what recording costs a worker whose programs have so many nodes."""
    return _RECORDER_BYTES + _RECORDER_NODE_BYTES * n_nodes


def prepare_kernels(threads: int, progress: StageProgress) -> Prepared:
    """Make sure that the kernels are in the cache, and know what they cost.

    Measured once for each version of the kernels, Python, NumPy, Numba and CPU, and remembered.

    Raises:
        WorkerError: Compiling or loading failed; the message holds the last line that the process wrote.
        InputError: The cache cannot be written.
    """
    if known := read_marker(threads):
        return known
    with one_at_a_time(progress):
        if known := read_marker(threads):  # of the command that was waited for
            return known
        compiled = compile_kernels(threads, progress)
        progress("measuring the baseline")
        footprints = {path: int(kernel_child(threads, path)["footprint_bytes"]) for path in compiled.paths}
        prepared = Prepared(compiled.fastest, footprints, entries_below(compiled.directory))
        with suppress(InputError):  # of a cache that can only be read: measured again next time
            write_marker(threads, prepared)
        return prepared


def forget_kernels(threads: int) -> None:
    """Forget that the kernels were compiled, so that the next run compiles them again."""
    with suppress(OSError):
        marker_path(threads).unlink(missing_ok=True)


def worker_baseline(kernels_bytes: int, n_nodes: int) -> int:
    """Return what a worker holds before any weight, by the bytes of its kernels and the nodes of its programs."""
    return kernels_bytes + WORKER_BYTES + NODE_BYTES * n_nodes


def session_bytes(n_nodes: int) -> int:
    """Return what a session holds in the end beside its planned memory."""
    return SESSION_BYTES + SESSION_NODE_BYTES * n_nodes


def worker_needs(kernels_bytes: int) -> Needs:
    """Return how budgets of capped runs are counted."""
    return capped_process(worker_baseline(kernels_bytes, 0) + SESSION_BYTES, NODE_BYTES + SESSION_NODE_BYTES)
