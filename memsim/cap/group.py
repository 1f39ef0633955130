"""One memory cgroup of version 1 or 2, made for a worker: its limit, its counters, and its end.

Every group is named ``memsim-<pid>-<start time of that process>``, so that a later command can tell a group whose owner
was killed from one in use.
"""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

from memsim.cap.footprint import start_time
from memsim.cap.linux import PROC

_REMOVE_S = 5.0  # a killed process with a gigabyte takes some tenths of a second to give it back


class Unavailable(Exception):
    """A way to enforce the cap cannot be had here; the text is the reason."""


class Group:
    """A memory cgroup for one worker.

    Attributes:
        version: 1 or 2.
        path: Its directory.
    """

    def __init__(self, version: int, path: Path):
        self.version = version
        self.path = path

    @classmethod
    def create(cls, version: int, parent: Path, proc: Path = PROC) -> "Group":
        """Make a group below ``parent``, named after this process.

        Raises:
            Unavailable: The directory cannot be made, or has no memory controller.
        """
        name = owned_name(proc)
        for attempt in range(1, 100):  # one process may hold several caps at once
            path = parent / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
            except OSError as error:
                raise Unavailable(f"cannot make a group in {parent}: {error.strerror}") from error
        group = cls(version, path)
        if not (path / group._limit_file).exists():
            group.remove()
            raise Unavailable(f"{parent} does not give the memory controller to its groups")
        return group

    @property
    def _limit_file(self) -> str:
        return "memory.limit_in_bytes" if self.version == 1 else "memory.max"

    def limit(self, limit_bytes: int, swap_in_use: bool) -> None:
        """Set the limit, forbid swap, and let the kernel kill.

        Raises:
            Unavailable: The kernel refused, or swap cannot be forbidden although the machine has some.
        """
        try:
            write_control(self.path / self._limit_file, limit_bytes)
            if self.version == 1:
                write_control(self.path / "memory.swappiness", 0)
                write_control(
                    self.path / "memory.oom_control", 0
                )  # a parent that pauses instead of killing passes that on
            else:
                _write_if_there(self.path / "memory.oom.group", 1)
            swap_file = "memory.memsw.limit_in_bytes" if self.version == 1 else "memory.swap.max"
            limited = _write_if_there(self.path / swap_file, limit_bytes if self.version == 1 else 0)
        except OSError as error:
            raise Unavailable(f"cannot set the limit of {self.path}: {error.strerror}") from error
        if self.version == 2 and swap_in_use and not limited:
            raise Unavailable(f"the machine swaps, and the kernel has no {swap_file} to forbid it")
        page = os.sysconf("SC_PAGE_SIZE")
        if read_control(self.path / self._limit_file) not in (str(limit_bytes), str(limit_bytes // page * page)):
            raise Unavailable(f"the kernel did not take the limit of {self.path}")

    def oom_kills(self) -> int | None:
        """Return how many processes the kernel killed here for want of memory, or None when the group has gone."""
        text = read_control(self.path / ("memory.oom_control" if self.version == 1 else "memory.events"))
        match = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        return int(match[1]) if match else None

    def peak_bytes(self) -> int | None:
        """Return the kernel's own peak, file cache included, or None (group gone, or version 2 before Linux 5.19)."""
        text = read_control(self.path / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"))
        return int(text) if text.isdecimal() else None

    def members(self) -> list[int]:
        """Return the ids of the processes in the group, 0 standing for one in a foreign pid namespace."""
        return [int(pid) for pid in read_control(self.path / "cgroup.procs").split()]

    def kill_members(self) -> None:
        """Kill every process of the group that this process can see."""
        for pid in self.members():
            if pid > 0:  # kill(0) would be our own process group
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> bool:
        """Kill what is left in the group and remove it, waiting until the memory is given back; True when gone."""
        end = time.monotonic() + _REMOVE_S
        while True:
            try:
                self.path.rmdir()
                return True
            except FileNotFoundError:
                return True
            except OSError:
                self.kill_members()
            if time.monotonic() > end:
                return False
            time.sleep(0.01)


def owned_name(proc: Path = PROC) -> str:
    """Return the name of this process's groups and scopes."""
    return f"memsim-{os.getpid()}-{start_time('self', proc)}"


def read_control(file: Path) -> str:
    """Return the text of a control file, empty when it is absent or its group has gone."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def write_control(file: Path, value: int | str) -> None:
    """Write to a control file, which must exist (opening it for text would make one in a test's fake tree)."""
    descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _write_if_there(file: Path, value: int | str) -> bool:
    """Write to a control file that some kernels lack; return whether it exists."""
    try:
        write_control(file, value)
    except FileNotFoundError:
        return False
    return True
