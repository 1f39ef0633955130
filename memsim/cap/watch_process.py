"""``python -m memsim.cap.watch_process PID``: watches a process and its descendants between two words.

A process of its own, since a thread of the watched one would wait for its interpreter lock just when it matters. It
reads ``begin`` and ``end``, a line each, and answers each with a line of JSON. It ends when the watched process does.
"""

import json
import os
import select
import sys
import time

from memsim.cap.process_tree import require_children
from memsim.cap.tree_peak import TreePeak
from memsim.cap.tree_reading import TreeReading, read_tree, reset_marks
from memsim.errors import WorkerError

INTERVAL_S = 0.002
_REST = 2
"""How many times as long as a reading took it waits at least: readings of many shared pages take milliseconds."""
_TRIES = 20


def main() -> None:
    """Do what the words say until the watched process ends."""
    watched = int(sys.argv[1])
    ended = os.pidfd_open(watched)
    peak: TreePeak | None = None
    rest_s = None
    while True:
        ready = select.select([0, ended], [], [], rest_s)[0]
        try:
            if 0 in ready:
                word = os.read(0, 64).decode()  # the other end waits for the answer before it writes again
                if word == "begin\n":
                    peak = _begin(watched)
                    rest_s = INTERVAL_S
                elif word == "end\n" and peak is not None:
                    peak.add(read_tree(watched, os.getpid(), peak.known))
                    _answer({"peak_bytes": peak.peak_bytes, "sampled_bytes": peak.sampled_bytes})
                    peak = rest_s = None
                else:
                    return
            elif ready:
                return
            elif peak is not None:
                started_s = time.perf_counter()
                peak.add(read_tree(watched, os.getpid(), peak.known))
                rest_s = max(INTERVAL_S, _REST * (time.perf_counter() - started_s))
        except WorkerError as error:
            _answer({"error": str(error)})
            return


def _begin(watched: int) -> TreePeak:
    """Take the zero, and say whether the kernel's mark of the watched process could be reset."""
    require_children(watched)
    first = _standing(watched)
    kept = reset_marks(list(first.processes))
    peak = TreePeak(_standing(watched))
    _answer({"marks": watched not in kept})
    return peak


def _standing(watched: int) -> TreeReading:
    """Return a reading of a tree that stood still, if it does so at all."""
    reading = read_tree(watched, os.getpid(), ())
    for _ in range(_TRIES):
        if reading.stood_still:
            break
        reading = read_tree(watched, os.getpid(), ())
    return reading


def _answer(plain: dict[str, object]) -> None:
    sys.stdout.write(f"{json.dumps(plain)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
