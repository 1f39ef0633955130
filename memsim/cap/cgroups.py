"""Where a memory cgroup may be made: the mounted hierarchies, delegation, and the groups that dead commands left.

Nothing here touches a group that memsim did not make, except to read it, and in version 2 to enable the memory
controller below a group that this process has for itself.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from memsim.cap.footprint import parent_pid, start_time
from memsim.cap.group import Group, Unavailable, owned_name, read_control, write_control
from memsim.cap.linux import PROC
from memsim.cap.mounts import unescaped

_NAME = re.compile(r"memsim-(\d+)-(\d+)(?:-\d+|-parent)?")
_PARENT_SUFFIX = "-parent"
_UNLIMITED_BYTES = 1 << 62  # version 1 writes "no limit" as the largest multiple of a page below 2^63


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup hierarchy with the controller that was asked for.

    Attributes:
        version: 1 or 2.
        mount: Where it is mounted.
        own: The group of this process, a directory at or below ``mount``.
    """

    version: int
    mount: Path
    own: Path


def find_hierarchy(version: int, proc: Path = PROC, controller: str = "memory") -> Hierarchy:
    """Return the hierarchy of ``version`` that holds this process, in version 1 the one with ``controller``.

    Raises:
        Unavailable: It is not mounted, or the group of this process lies outside what is mounted (some containers).
    """
    for line in os.fsdecode((proc / "self/mountinfo").read_bytes()).split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(" "), after.split(" ", 2)
        if kind != ("cgroup" if version == 1 else "cgroup2") or (version == 1 and controller not in options.split(",")):
            continue
        root, mount = map(unescaped, fields[3:5])
        inside = os.path.relpath(_own_path(version, proc, controller), root)
        if not inside.startswith(".."):
            return Hierarchy(version, Path(mount), Path(mount) / inside)
    raise Unavailable(f"no cgroup version {version} {controller} hierarchy is mounted that holds this process")


def _own_path(version: int, proc: Path, controller: str) -> str:
    """Return the path of this process's group as the kernel writes it, from the hierarchy's root."""
    for line in os.fsdecode((proc / "self/cgroup").read_bytes()).split("\n")[:-1]:
        number, controllers, path = line.split(":", 2)
        if (number == "0") if version == 2 else (controller in controllers.split(",")):
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
            text = read_control(group / file)
            if text.isdecimal() and int(text) < _UNLIMITED_BYTES:
                limits.append(int(text))
    return min(limits, default=None)


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

    Version 1 allows it right below the own group. In version 2 a group either holds processes or gives controllers to
    the groups below it, so a delegated group that holds this process and its children only is emptied into a leaf.

    Raises:
        Unavailable: No such group; the text says what is missing.
    """
    own = hierarchy.own
    if hierarchy.version == 2 and "memory" not in read_control(own / "cgroup.controllers").split():
        raise Unavailable(f"the memory controller is not delegated to {own}")
    if not os.access(own, os.W_OK):
        raise Unavailable(f"{own} is not writable")
    if hierarchy.version == 1:
        return own
    if own.name.endswith(_PARENT_SUFFIX) and _NAME.fullmatch(own.name):
        return own.parent  # an earlier cap of this process moved it
    if "memory" not in read_control(own / "cgroup.subtree_control").split():
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
            write_control(leaf / "cgroup.procs", pid)
        write_control(own / "cgroup.subtree_control", "+memory")
    except OSError as error:
        for pid in Group(2, leaf).members():
            write_control(own / "cgroup.procs", pid)
        if leaf.is_dir():
            leaf.rmdir()
        raise Unavailable(f"cannot enable the memory controller below {own}: {error.strerror}") from error


def _is_self_or_child(pid: int, proc: Path) -> bool:
    ancestor: int | None = pid
    while ancestor and ancestor != os.getpid():
        ancestor = parent_pid(ancestor, proc)
    return ancestor == os.getpid()
