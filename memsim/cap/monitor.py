"""The parent's watch over a worker: peaks, the watchdog where no kernel limit holds, and the thrashing rule.

A group squeezed below its working file pages is not killed by the kernel: it reads every page again and again. Such a
worker finishes no node while its major faults climb, and is stopped here.
"""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from memsim.cap.confine import EXIT_OUT_OF_MEMORY
from memsim.cap.footprint import ProcessStatus
from memsim.cap.open import Cap
from memsim.cap.thrashing import STALL_S, Stall
from memsim.units import MIB

INTERVAL_S = 0.01
_COST_SHARE = 0.02  # of the time for reading smaps_rollup, which also holds the worker's own page faults up

Verdict = Literal["thrashing", "killed_at_cap"]
ExitReason = Literal["done", "killed_at_cap", "thrashing", "killed", "error"]


class Worker(Protocol):
    """What the monitor needs of a ``subprocess.Popen``, whose ``kill`` never hits another process of the same id."""

    @property
    def pid(self) -> int:
        """Return the process id."""
        ...

    def kill(self) -> None:
        """Send SIGKILL unless the process was already waited for."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a worker.

    Attributes:
        footprint_bytes: Its footprint now.
        peak_rss_bytes: The kernel's own maximum of its resident pages, clean file pages included.
        major_faults: Page faults that read a disk, since it started.
    """

    footprint_bytes: int
    peak_rss_bytes: int
    major_faults: int


class Sampler:
    """Looks at a worker: tens of microseconds with a group, and without one at most 2 % of the time unless it grows."""

    def __init__(self, pid: int, cap: Cap, clock: Callable[[], float] = time.monotonic):
        """Prepare to sample process ``pid`` under ``cap``."""
        self._pid = pid
        self._cap = cap
        self._clock = clock
        self._status: ProcessStatus | None = None
        self._footprint_bytes = 0
        self._next_walk_s = 0.0

    def __call__(self) -> Sample | None:
        """Return a sample, or None when the worker is not there (not yet, or no longer)."""
        try:
            if self._status is None:
                self._status = ProcessStatus(self._pid)
            sizes = self._status.sizes_bytes()
            faults = self._status.major_faults()
            self._cap.kernel_peak_bytes()  # a systemd scope takes its counters with it
            footprint = self._walked(sizes) if self._cap.group_path is None else self._cap.footprint_bytes(self._pid)
        except OSError:
            return None
        return Sample(footprint, sizes.get("VmHWM", 0), faults)

    def _walked(self, sizes: dict[str, int]) -> int:
        """Return the footprint by smaps_rollup: when the cheap figures grew since the last walk, or it is time."""
        at_least = sizes.get("RssAnon", 0) + sizes.get("VmSwap", 0)
        start_s = self._clock()
        if start_s >= self._next_walk_s or at_least > self._footprint_bytes + MIB:
            self._footprint_bytes = self._cap.footprint_bytes(self._pid)
            end_s = self._clock()
            self._next_walk_s = end_s + (end_s - start_s) / _COST_SHARE
        return self._footprint_bytes

    def close(self) -> None:
        """Close the files of the process."""
        if self._status is not None:
            self._status.close()
            self._status = None


class Monitor:
    """Samples a worker in a thread, from ``with`` to its end, and kills it when it breaks a rule.

    Attributes:
        peak_footprint_bytes: The highest footprint sampled.
        peak_rss_bytes: The highest resident set, clean file pages included.
        major_faults: Page faults that read a disk.
        verdict: Why the monitor killed the worker, or None.
    """

    def __init__(
        self,
        worker: Worker,
        cap: Cap,
        sample: Callable[[], Sample | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        stall_s: float = STALL_S,
    ):
        """Prepare to watch ``worker``, started under ``cap``.

        Args:
            worker: The process.
            cap: Its cap.
            sample: Returns a sample or None; for tests.
            clock: Returns seconds; for tests.
            stall_s: How long a worker may finish no node while its major faults climb.
        """
        self.peak_footprint_bytes = 0
        self.peak_rss_bytes = 0
        self.major_faults = 0
        self.verdict: Verdict | None = None
        self._worker = worker
        self._cap = cap
        self._sampler = None if sample else Sampler(worker.pid, cap)
        self._sample = sample or self._sampler or (lambda: None)
        self._clock = clock
        self._stall = Stall(clock(), stall_s)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memsim-monitor", daemon=True)

    def node_done(self) -> None:
        """Note that the worker finished a node: the stall starts anew."""
        with self._lock:
            self._stall.node_done(self._clock())

    def poll(self) -> None:
        """Take one sample and judge it. The thread does this 100 times a second."""
        sample = self._sample()
        if sample is None:
            return
        with self._lock:
            self.peak_footprint_bytes = max(self.peak_footprint_bytes, sample.footprint_bytes)
            self.peak_rss_bytes = max(self.peak_rss_bytes, sample.peak_rss_bytes)
            self.major_faults = max(self.major_faults, sample.major_faults)
            if self.verdict is None:
                self.verdict = self._judge(sample)
                if self.verdict is not None:
                    self._worker.kill()

    def _judge(self, sample: Sample) -> Verdict | None:
        if self._cap.needs_watchdog and sample.footprint_bytes > self._cap.budget_bytes:
            return "killed_at_cap"
        return "thrashing" if self._stall.is_over(self._clock(), sample.major_faults) else None

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            self.poll()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop sampling; the figures stay. Calling it again does nothing."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._sampler is not None:
            self._sampler.close()


def exit_reason(returncode: int, cap: Cap, monitor: Monitor) -> ExitReason:
    """Return why a worker ended, in the record's word.

    Args:
        returncode: As ``subprocess`` gives it: an exit code, or minus a signal's number.
        cap: The cap it ran under, open or closed.
        monitor: The monitor that watched it.
    """
    if returncode == 0:
        return "done"
    if returncode == -signal.SIGKILL:
        if monitor.verdict is not None:
            return monitor.verdict
        return "killed_at_cap" if cap.oom_kills() else "killed"
    if returncode == EXIT_OUT_OF_MEMORY and cap.needs_data_limit:
        return "killed_at_cap"
    if -returncode in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        return "killed"
    return "error"


def describe_exit(returncode: int) -> str:
    """Return the end of a process in words for a message: ``exit code 1`` or ``signal SIGSEGV``."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-returncode}"
