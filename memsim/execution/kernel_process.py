"""``python -m memsim.execution.kernel_process THREADS compile|f32|bf16`` fills Numba's cache, or weighs it.

To weigh is to load what a worker of a compute path loads, and to print the own footprint. So nothing is imported here
that a worker does not need. Every answer is a line of JSON.
"""

import json
import sys

from memsim.cap.footprint import process_footprint
from memsim.errors import MemsimError
from memsim.execution.compile_cache import forbid_compilation, loading
from memsim.system_limits import system_refusal


def main() -> None:
    """Compile every kernel and print the fastest compute path and all; or load one and print this footprint."""
    threads, task = int(sys.argv[1]), sys.argv[2]
    try:
        with loading():
            _compile(threads) if task == "compile" else _weigh(threads, task)
    except MemsimError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(system_refusal(error) or str(error))


def _compile(threads: int) -> None:
    from memsim.execution.compile_count import counting

    with counting(lambda done, total: print(json.dumps([done, total]), flush=True)):
        from memsim.execution.kernels import compiled_directory, compute_paths, fastest_compute

        fastest = fastest_compute(threads)
    print(json.dumps({"fastest": fastest, "paths": compute_paths(), "directory": compiled_directory()}))


def _weigh(threads: int, compute: str) -> None:
    with forbid_compilation():
        from memsim.execution.kernels import finish_loading, load_kernels

        kernels = load_kernels(compute, threads)
    import memsim.execution.saver
    import memsim.execution.session
    import memsim.execution.worker
    import memsim.weights.trained  # noqa: F401

    finish_loading()
    footprint = process_footprint()
    print(json.dumps({"footprint_bytes": footprint, "ops": len(kernels)}))  # held until now, with their workspaces


if __name__ == "__main__":
    main()
