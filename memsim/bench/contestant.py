"""A process that times its own calls when it is told to: contestants take turns, and none meets another's threads.

Every OpenMP library keeps a pool of threads that wait, spinning for a while, for its next call. Two in one process
would hold up each other. So each contestant (our kernels, torch, NumPy's BLAS) is a process, and one is asked at a
time. A request is a line of JSON on its standard input, the reply a line on its standard output.
"""

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memsim.cap.child import child_command, start_child
from memsim.errors import WorkerError
from memsim.files import last_line

REST_S = 0.05
"""Between two turns: the threads of the one before stop spinning (GNU's OpenMP: up to some ten milliseconds)."""
_BOUND = {"OMP_PROC_BIND": "true"}
"""A thread that wakes up beside another one on the same processor makes a call take twice as long."""


@dataclass(frozen=True, slots=True)
class Call:
    """Something to time, and the floating-point operations that it says to do (0 where the parent knows them)."""

    run: Callable[[], object]
    flops: int = 0


Case = Mapping[str, Any]
"""What to prepare, as JSON; what it holds is between a contestant and its parent."""


class CaseError(Exception):
    """The calls of a case do not do what they should; the text says by how much."""


def serve(prepare: Callable[[Case], dict[str, Call]]) -> None:
    """Answer requests until standard input ends: what the main program of a contestant does.

    Args:
        prepare: Makes the calls of a case, after checking their results. May raise ``CaseError``.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no reply
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "case" in request:
            calls = {}
            gc.collect()  # one case's arrays at a time
            try:
                calls = prepare(request["case"])
                reply: dict[str, Any] = {"flops": {name: call.flops for name, call in calls.items()}}
            except CaseError as error:
                reply = {"error": str(error)}
        else:
            for call in [*calls.values()] * request["warm_ups"]:
                call.run()
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(request["repeats"]):
                for name, call in calls.items():
                    seconds[name].append(_timed(call))
            reply = {"seconds": seconds, "peak_rss_bytes": _peak_rss_bytes()}
        replies.write(json.dumps(reply) + "\n")


def _timed(call: Call) -> float:
    start = time.perf_counter()
    call.run()
    return time.perf_counter() - start


def reset_peak_rss() -> None:
    """Forget the highest resident size so far; where that may not be written, the peak is that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_rss_bytes() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


class Contestant:
    """The parent's end of a contestant; a context manager that ends its process.

    Attributes:
        peak_rss_bytes: Highest resident size of its process, as of the last turn.
    """

    def __init__(self, module: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._name = module
        self._process = start_child(
            child_command(module, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**environment, **_BOUND},
        )
        self.peak_rss_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def prepare(self, case: Case) -> dict[str, int]:
        """Make the calls of a case, and return their floating-point operations by name.

        Raises:
            WorkerError: The process ended, or a result of the case is wrong.
        """
        reply = self._ask({"case": dict(case)})
        if "error" in reply:
            raise WorkerError(reply["error"])
        flops: dict[str, int] = reply["flops"]
        return flops

    def time(self, repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
        """Take a turn: all calls of the case one after the other, ``repeats`` times after ``warm_ups`` untimed ones.

        Returns:
            Seconds by the name of the call.

        Raises:
            WorkerError: The process ended.
        """
        time.sleep(REST_S)
        reply = self._ask({"repeats": repeats, "warm_ups": warm_ups})
        self.peak_rss_bytes = reply["peak_rss_bytes"]
        seconds: dict[str, list[float]] = reply["seconds"]
        return seconds

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            code = self._process.wait()
            raise WorkerError(f"{self._name} ended ({code}): {last_line(self._stderr) or 'without a word'}")
        reply: dict[str, Any] = json.loads(line)
        return reply
