"""``python -m memsim.cap.watch PID``: the peak of a process and its descendants, between lines of standard input.

A process of its own, since a thread of the watched one would wait for its interpreter lock just when it matters. The
first line of each two begins, the second answers with the peak since then, in bytes; in between it sleeps.
"""

import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from memsim.cap.child import child_command, start_child
from memsim.errors import WorkerError

INTERVAL_S = 0.002
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class PeakWatch:
    """The other end: measures what this process holds beyond what it held, and all that its children hold.

    A context manager. ``start`` begins anew, ``peak_bytes`` answers.
    """

    def __init__(self) -> None:
        command = child_command("memsim.cap.watch", os.getpid())
        self._process = start_child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self) -> None:
        """Take what is held now as the zero of this process.

        Raises:
            WorkerError: The watching process ended.
        """
        self._ask()

    def peak_bytes(self) -> int:
        """Return the peak since ``start``.

        Raises:
            WorkerError: The watching process ended.
        """
        return self._ask()

    def _ask(self) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        answer = b""
        with suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise WorkerError(f"the process that watches footprints ended ({self._process.wait()})")
        return int(answer)


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process that is in RAM, 0 when it has gone; some microseconds."""
    try:
        _, resident, shared, _ = Path(f"/proc/{pid}/statm").read_bytes().split(None, 3)
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES


def descendants(pid: int) -> list[int]:
    """Return the processes that descend from ``pid`` but for this one."""
    found = []
    for task in _children_files(pid):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                if child != os.getpid():
                    found += [child, *descendants(child)]
    return found


def _children_files(pid: int) -> list[Path]:
    with suppress(OSError):
        return [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
    return []


def main() -> None:
    """Watch until standard input ends."""
    watched = int(sys.argv[1])
    while os.read(0, 1):
        zero = anonymous_bytes(watched)
        _answer(0)
        peak = zero
        while not select.select([0], [], [], INTERVAL_S)[0]:
            peak = max(peak, _held(watched))
        if not os.read(0, 1):
            return
        _answer(max(peak, _held(watched)) - zero)


def _held(watched: int) -> int:
    return anonymous_bytes(watched) + sum(map(anonymous_bytes, descendants(watched)))


def _answer(n_bytes: int) -> None:
    sys.stdout.write(f"{max(0, n_bytes)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
