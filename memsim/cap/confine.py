"""What a worker does to itself: die with its parent, and limit its data where no cgroup can.

Used at the start of the worker, inside the cap, so only the standard library, and only what is needed.
"""

import os
import resource
import signal

from memsim.cap.footprint import ProcessStatus, process_footprint

EXIT_OUT_OF_MEMORY = 86
"""How a worker ends after a ``MemoryError``. The parent reads it as the cap when it asked for `limit_data`."""

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, and end now when it already has.

    The kernel's "parent" is the thread that started this process: start workers from a thread that outlives them.

    Args:
        parent_pid: The process id of the parent, as the parent told it.

    Raises:
        OSError: The kernel refused.
    """
    import ctypes  # half a megabyte: not for those who only read the exit code above

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it ended before the line above: no signal will come
        os.kill(os.getpid(), signal.SIGKILL)


def limit_data(budget_bytes: int) -> int:
    """Limit this process's private memory so that its footprint stays below ``budget_bytes``; return the limit set.

    RLIMIT_DATA counts what is mapped, touched or not (libraries, thread stacks, reserved heaps), so the limit is the
    budget plus what is mapped now and not in the footprint. Call it after the kernels ran once, when the threads exist
    and the heaps are reserved. From then on a too large allocation raises MemoryError.

    Raises:
        OSError: The kernel refused, or does not tell the sizes.
    """
    status = ProcessStatus()
    mapped = status.sizes_bytes()["VmData"]
    status.close()
    limit = max(0, budget_bytes + mapped - process_footprint())
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return limit
