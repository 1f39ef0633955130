"""Memory cgroups, versions 1 and 2: where one may be made, its limit, its counters, and leaving none behind.

Every group of memsim is named ``memsim-<pid>-<start time of that process>``, so that a later command can tell a group whose
owner was killed from one in use. Nothing here touches a group with another name, except to read it.
"""

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from memsim.runtime.footprint import parent_pid, start_time

PROC = Path("/proc")
_NAME = re.compile(r"memsim-(\d+)-(\d+)(?:-\d+|-parent)?")
_PARENT_SUFFIX = "-parent"
_REMOVE_S = 5.0  # a killed process with a gigabyte takes some tenths of a second to give it back
_UNLIMITED_BYTES = 1 << 62  # version 1 writes "no limit" as the largest multiple of a page below 2^63


class Unavailable(Exception):
    """A way to enforce the cap cannot be had here; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup hierarchy with the memory controller.

    Attributes:
        version: 1 or 2.
        mount: Where it is mounted.
        own: The group of this process, a directory at or below ``mount``.
    """

    version: int
    mount: Path
    own: Path


def find_hierarchy(version: int, proc: Path = PROC) -> Hierarchy:
    """Return the hierarchy of ``version`` that holds this process.

    Raises:
        Unavailable: It is not mounted, or the group of this process lies outside what is mounted (some containers).
    """
    for line in (proc / "self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        if kind != ("cgroup" if version == 1 else "cgroup2") or (version == 1 and "memory" not in options.split(",")):
            continue
        root, mount = (field.encode().decode("unicode_escape") for field in fields[3:5])
        inside = os.path.relpath(_own_path(version, proc), root)
        if not inside.startswith(".."):
            return Hierarchy(version, Path(mount), Path(mount) / inside)
    raise Unavailable(f"no cgroup version {version} memory hierarchy is mounted that holds this process")


def _own_path(version: int, proc: Path) -> str:
    """Return the path of this process's group as the kernel writes it, from the hierarchy's root."""
    for line in (proc / "self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if (number == "0") if version == 2 else ("memory" in controllers.split(",")):
            return path
    raise Unavailable(f"this process is in no cgroup of version {version}")


def enclosing_limit_bytes(proc: Path = PROC) -> int | None:
    """Return the smallest memory limit already set on this process's group or the groups above it, or None."""
    limits = []
    for version, file in ((1, "memory.limit_in_bytes"), (2, "memory.max")):
        try:
            hierarchy = find_hierarchy(version, proc)
        except Unavailable:
            continue
        for group in (hierarchy.own, *hierarchy.own.parents):
            if not group.is_relative_to(hierarchy.mount):
                break
            text = _read(group / file)
            if text.isdecimal() and int(text) < _UNLIMITED_BYTES:
                limits.append(int(text))
    return min(limits, default=None)


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
            _write(self.path / self._limit_file, limit_bytes)
            if self.version == 1:
                _write(self.path / "memory.swappiness", 0)
                _write(self.path / "memory.oom_control", 0)  # a parent that pauses instead of killing passes that on
            else:
                _write_if_there(self.path / "memory.oom.group", 1)
            swap_file = "memory.memsw.limit_in_bytes" if self.version == 1 else "memory.swap.max"
            limited = _write_if_there(self.path / swap_file, limit_bytes if self.version == 1 else 0)
        except OSError as error:
            raise Unavailable(f"cannot set the limit of {self.path}: {error.strerror}") from error
        if self.version == 2 and swap_in_use and not limited:
            raise Unavailable(f"the machine swaps, and the kernel has no {swap_file} to forbid it")
        page = os.sysconf("SC_PAGE_SIZE")
        if _read(self.path / self._limit_file) not in (str(limit_bytes), str(limit_bytes // page * page)):
            raise Unavailable(f"the kernel did not take the limit of {self.path}")

    def oom_kills(self) -> int | None:
        """Return how many processes the kernel killed here for want of memory, or None when the group has gone."""
        text = _read(self.path / ("memory.oom_control" if self.version == 1 else "memory.events"))
        match = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        return int(match[1]) if match else None

    def peak_bytes(self) -> int | None:
        """Return the kernel's own peak, file cache included, or None (group gone, or version 2 before Linux 5.19)."""
        text = _read(self.path / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"))
        return int(text) if text.isdecimal() else None

    def members(self) -> list[int]:
        """Return the ids of the processes in the group, 0 standing for one in a foreign pid namespace."""
        return [int(pid) for pid in _read(self.path / "cgroup.procs").split()]

    def kill_members(self) -> None:
        """Kill every process of the group that this process can see."""
        for pid in self.members():
            if pid <= 0:  # kill(0) would be our own process group
                continue
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if pid in self.members():  # the id may have been given to another process before the handle was taken
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            except OSError:
                pass  # it ended by itself, or is not ours to kill
            finally:
                os.close(handle)

    def remove(self) -> bool:
        """Kill what is left in the group and remove it, waiting for the memory to be given back; True when it is gone."""
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


def remove_stale_groups(parent: Path, proc: Path = PROC) -> list[Path]:
    """Remove the groups of memsim below ``parent`` whose owner is dead; return those removed.

    A worker dies with its owner, so what may still be inside is on its way out, or ours to kill.
    """
    removed = []
    for path in sorted(parent.glob("memsim-*")):
        match = _NAME.fullmatch(path.name)
        if match is None or start_time(int(match[1]), proc) == int(match[2]):
            continue
        group = Group(1, path)  # members and removal are alike in both versions
        if 0 not in group.members() and group.remove():
            removed.append(path)
    return removed


def parent_for_groups(hierarchy: Hierarchy, proc: Path = PROC) -> Path:
    """Return the group below which the worker's group can be made.

    Version 1 allows it right below the own group. In version 2 a group either holds processes or gives controllers to the
    groups below it, so a delegated group that holds nobody but this process (and its children) is emptied into a leaf first.

    Raises:
        Unavailable: No such group; the text says what is missing.
    """
    own = hierarchy.own
    if not os.access(own, os.W_OK):
        raise Unavailable(f"{own} is not writable")
    if hierarchy.version == 1:
        return own
    if own.name.endswith(_PARENT_SUFFIX) and _NAME.fullmatch(own.name):
        return own.parent  # an earlier cap of this process moved it
    if "memory" not in _read(own / "cgroup.controllers").split():
        raise Unavailable(f"the memory controller is not delegated to {own}")
    if "memory" not in _read(own / "cgroup.subtree_control").split():
        _empty_into_leaf(own, proc)
    return own


def _empty_into_leaf(own: Path, proc: Path) -> None:
    """Move this process and its children from ``own`` to a group below it, then enable the memory controller there."""
    members = Group(2, own).members()
    strangers = [pid for pid in members if not _is_self_or_child(pid, proc)]
    if strangers:
        raise Unavailable(f"{own} holds {len(strangers)} other processes; memsim does not move them")
    leaf = own / (owned_name(proc) + _PARENT_SUFFIX)
    try:
        leaf.mkdir()
        for pid in members:
            _write(leaf / "cgroup.procs", pid)
        _write(own / "cgroup.subtree_control", "+memory")
    except OSError as error:
        for pid in Group(2, leaf).members():
            _write(own / "cgroup.procs", pid)
        if leaf.is_dir():
            leaf.rmdir()
        raise Unavailable(f"cannot enable the memory controller below {own}: {error.strerror}") from error


def _is_self_or_child(pid: int, proc: Path) -> bool:
    ancestor: int | None = pid
    while ancestor and ancestor != os.getpid():
        ancestor = parent_pid(ancestor, proc)
    return ancestor == os.getpid()


def _read(file: Path) -> str:
    """Return the text of a control file, empty when it is absent or its group has gone."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _write(file: Path, value: int | str) -> None:
    """Write to a control file that must exist (opening for text would create it in a fake tree, and hide a missing one)."""
    descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _write_if_there(file: Path, value: int | str) -> bool:
    """Write to a control file that some kernels lack; return whether it exists."""
    try:
        _write(file, value)
    except FileNotFoundError:
        return False
    return True
