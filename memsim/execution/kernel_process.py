"""``python -m memsim.execution.kernel_process THREADS compile|f32|bf16`` fills Numba's cache, or weighs it.

To weigh is to load what a worker of a compute path loads, and to print the own footprint. So nothing is imported here
that a worker does not need.
"""

import sys

from memsim.cap.footprint import process_footprint
from memsim.execution.compile_cache import forbid_compilation


def main() -> None:
    """Compile every kernel and print the fastest compute path and all; or load one and print this footprint."""
    threads, task = int(sys.argv[1]), sys.argv[2]
    if task == "compile":
        from memsim.execution.kernels import compute_paths, fastest_compute

        print(fastest_compute(threads), *compute_paths())
        return
    with forbid_compilation():
        from memsim.execution.kernels import finish_loading, load_kernels

        kernels = load_kernels(task, threads)
    import memsim.execution.saver
    import memsim.execution.session
    import memsim.execution.worker
    import memsim.weights.trained  # noqa: F401

    finish_loading()
    print(process_footprint(), len(kernels))  # held until now, with the workspaces that they keep


if __name__ == "__main__":
    main()
