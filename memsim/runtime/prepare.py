"""Before the first run: compile the kernels outside any cap, and measure what a process costs before any weight."""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memsim.cap.child import ask_child
from memsim.errors import InputError, WorkerError
from memsim.execution.compile_cache import kernel_environment
from memsim.files import cache_dir, write_text
from memsim.host import host_info, versions
from memsim.progress_types import StageProgress
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of the kernels of this machine.

    Attributes:
        fastest: The compute path that multiplies packed weights fastest: ``f32`` or ``bf16``.
        footprint_bytes: By compute path, what a process holds that has loaded its kernels and no weight. A processor
            that cannot multiply in bf16 has no such entry.
    """

    fastest: str
    footprint_bytes: Mapping[str, int]


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
    marker = _marker(threads)
    try:
        known = json.loads(marker.read_text())
        return Prepared(
            str(known["fastest"]), {str(key): int(value) for key, value in known["footprint_bytes"].items()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    progress("compiling kernels (once; about two minutes)")
    fastest, *paths = _child(threads, "compile").split()
    progress("measuring the baseline")
    footprints = {path: int(_child(threads, path).split()[0]) for path in paths}
    write_text(marker, json.dumps({"fastest": fastest, "footprint_bytes": footprints}) + "\n")
    return Prepared(fastest, footprints)


def forget_kernels(threads: int) -> None:
    """Forget that the kernels were compiled, so that the next run compiles them again."""
    _marker(threads).unlink(missing_ok=True)


def _marker(threads: int) -> Path:
    digest = hashlib.sha256(json.dumps([versions(), host_info().cpu, threads]).encode())
    for source in _sources():
        digest.update(source.read_bytes())
    directory = cache_dir() / "kernels"
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the cache {directory}: {error.strerror}; set MEMSIM_CACHE") from error
    return directory / f"baseline-{digest.hexdigest()[:16]}.json"


def kernels_digest() -> str:
    """Return the SHA-256 of the kernels' sources."""
    digest = hashlib.sha256()
    for source in _sources():
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _sources() -> list[Path]:
    spec = importlib.util.find_spec("memsim_kernels")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package memsim_kernels is not installed; run `pip install -e .` in memsim's checkout")
    return sorted(Path(spec.submodule_search_locations[0]).glob("*.py"))


def _child(threads: int, task: str) -> str:
    code, output, complaint = ask_child("memsim.execution.kernel_process", threads, task, env=kernel_environment())
    if code:
        what = "compile the kernels" if task == "compile" else f"load the {task} kernels"
        raise WorkerError(f"cannot {what}: {complaint or f'exit code {code}'}")
    return output


def worker_baseline(kernels_bytes: int, n_nodes: int) -> int:
    """Return what a worker holds before any weight, by the bytes of its kernels and the nodes of its programs."""
    return kernels_bytes + WORKER_BYTES + NODE_BYTES * n_nodes


def session_bytes(n_nodes: int) -> int:
    """Return what a session holds in the end beside its planned memory."""
    return SESSION_BYTES + SESSION_NODE_BYTES * n_nodes


def worker_needs(kernels_bytes: int) -> Needs:
    """Return how budgets of capped runs are counted."""
    return capped_process(worker_baseline(kernels_bytes, 0) + SESSION_BYTES, NODE_BYTES + SESSION_NODE_BYTES)
