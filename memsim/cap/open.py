"""The cap: the best way that this machine has to hold a worker process below a budget, behind one small interface.

``open_cap`` tries, in this order, a cgroup of version 2, a scope of systemd's user manager, a cgroup of version 1,
RLIMIT_DATA with a watchdog, and the watchdog alone. In the first three the kernel itself kills at the budget. In the
last two the parent's monitor kills, and where the cap says so, the worker limits itself with ``confine.limit_data``.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from memsim.cap import cgroups, systemd
from memsim.cap.footprint import GroupFootprint, process_footprint
from memsim.cap.group import Group, Unavailable, read_control
from memsim.cap.linux import PROC, require_linux
from memsim.errors import InputError, UsageError
from memsim.units import format_bytes

# The shell joins the group and becomes the worker: same process id, same parent, nothing of the worker outside the cap.
_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"; exit 125'
_JOIN_S = 10.0
_PROBE = """
import mmap, resource
resource.setrlimit(resource.RLIMIT_DATA, (1 << 27, 1 << 27))
try:
    mmap.mmap(-1, 1 << 28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except OSError:
    print("limited")
"""


class Cap:
    """A budget that holds for the process started with `command`, until `close`. Usable in a ``with`` statement.

    Attributes:
        enforcement: How it is held: cgroup2, systemd, cgroup1, rlimit+watchdog or watchdog.
        budget_bytes: The limit.
        group_path: The worker's own cgroup, or None. With systemd it exists only while the worker runs.
        refusals: Why each better way was not available, as ``name: reason``.
    """

    def __init__(
        self,
        enforcement: str,
        budget_bytes: int,
        group: Group | None = None,
        launcher: Sequence[str] = (),
        oom_group: Group | None = None,
        proc: Path = PROC,
    ):
        """Describe an open cap; users call `open_cap`.

        Args:
            enforcement: How it is held.
            budget_bytes: The limit.
            group: The worker's group, if any.
            launcher: What goes before the worker's command line.
            oom_group: Where the kernel's kills are counted, if not in ``group`` (which may vanish with the worker).
            proc: Where the proc file system is.
        """
        self.enforcement = enforcement
        self.budget_bytes = budget_bytes
        self.group_path = group.path if group else None
        self.refusals: tuple[str, ...] = ()
        self._group = group
        self._launcher = list(launcher)
        self._oom_group = oom_group or group
        self._proc = proc
        self._oom_before = self._count_oom_kills()
        self._oom_kills = 0
        self._peak_bytes: int | None = None
        self._footprint: GroupFootprint | None = None

    @property
    def needs_data_limit(self) -> bool:
        """Whether the worker itself must call ``confine.limit_data``."""
        return self.enforcement == "rlimit+watchdog"

    @property
    def needs_watchdog(self) -> bool:
        """Whether nobody but the parent's monitor kills a worker over the budget."""
        return self._group is None

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs ``argv`` under the cap from its first instruction, in the same process."""
        return [*self._launcher, *argv]

    def footprint_bytes(self, pid: int) -> int:
        """Return the worker's footprint: its group's where there is one, else that of process ``pid``.

        Raises:
            OSError: The group or the process is not there (not yet, or no longer).
        """
        if self.group_path is None:
            return process_footprint(pid, self._proc)
        if self._footprint is None:
            self._footprint = GroupFootprint(self.group_path)
        return self._footprint.read_bytes()

    def oom_kills(self) -> int:
        """Return how many processes the kernel killed at this cap; 0 without a group. `close` keeps the figure."""
        self._oom_kills = max(self._oom_kills, self._count_oom_kills() - self._oom_before)
        return self._oom_kills

    def kernel_peak_bytes(self) -> int | None:
        """Return the highest usage the kernel saw, file cache included, or None. After `close`, the last value read."""
        if self._group is not None:
            self._peak_bytes = self._group.peak_bytes() or self._peak_bytes
        return self._peak_bytes

    def close(self) -> None:
        """Kill what is left in the group and remove it. Calling it again does nothing."""
        self.oom_kills()
        self.kernel_peak_bytes()
        if self._footprint is not None:
            self._footprint.close()
            self._footprint = None
        if self._group is not None:
            self._group.remove()
            self._group = None
            self._oom_group = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _count_oom_kills(self) -> int:
        return (self._oom_group.oom_kills() or 0) if self._oom_group else 0


def open_cap(budget_bytes: int, enforcement: str | None = None, proc: Path = PROC) -> Cap:
    """Open the best cap that this machine has, and remove the groups that killed commands left behind.

    Args:
        budget_bytes: The limit on the whole worker process, interpreter included.
        enforcement: Take this way and no other.
        proc: Where the proc file system is.

    Raises:
        InputError: No way works here (the message says why each does not), or the machine already limits this process
            to less than the budget.
        UsageError: The budget is not positive, or ``enforcement`` is not a way.
    """
    if budget_bytes <= 0:
        raise UsageError(f"a budget of {budget_bytes} bytes cannot hold a process; give one such as 1GB")
    if enforcement is not None and enforcement not in _OPENERS:
        raise UsageError(f"{enforcement!r} is no enforcement; use one of {', '.join(_OPENERS)}")
    require_linux("a capped run", proc)
    enclosing = cgroups.enclosing_limit_bytes(proc)
    if enclosing is not None and enclosing < budget_bytes:
        raise InputError(
            f"the budget of {format_bytes(budget_bytes)} is more than the {format_bytes(enclosing)} to which a cgroup "
            f"around this process is limited; lower --budget, or raise that limit"
        )
    refusals: list[str] = []
    for name in [enforcement] if enforcement else _OPENERS:
        try:
            cap = _OPENERS[name](budget_bytes, proc)
        except Unavailable as reason:
            refusals.append(f"{name}: {reason}")
        else:
            cap.refusals = tuple(refusals)
            return cap
    raise InputError(f"cannot cap a process here ({'; '.join(refusals)}); see docs/cgroups.md")


def _open_group(version: int, budget_bytes: int, proc: Path) -> Cap:
    hierarchy = cgroups.find_hierarchy(version, proc)
    parent = cgroups.parent_for_groups(hierarchy, proc)
    cgroups.remove_stale_groups(parent, proc)
    group = Group.create(version, parent, proc)
    launcher = ["/bin/sh", "-c", _JOIN, str(group.path)]
    try:
        _try_to_join(launcher)
        group.limit(budget_bytes, swap_in_use=len(read_control(proc / "swaps").splitlines()) > 1)
    except Unavailable:
        group.remove()
        raise
    return Cap(f"cgroup{version}", budget_bytes, group, launcher, proc=proc)


def _try_to_join(launcher: list[str]) -> None:
    """Run nothing inside the group: joining may be forbidden where making it was not."""
    command = [*launcher, "/bin/sh", "-c", ":"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_JOIN_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"no process joined {launcher[-1]} in {_JOIN_S:.0f} s") from error
    if answer.returncode != 0:
        raise Unavailable(f"no process can join {launcher[-1]}: {answer.stderr.strip()}")


def _open_scope(budget_bytes: int, proc: Path) -> Cap:
    launcher, group = systemd.open_scope(budget_bytes, proc)
    return Cap("systemd", budget_bytes, group, launcher, oom_group=Group(2, group.path.parent), proc=proc)


def _open_rlimit(budget_bytes: int, proc: Path) -> Cap:
    if not _data_limit_works():
        raise Unavailable("this kernel does not enforce RLIMIT_DATA")
    _open_watchdog(budget_bytes, proc)
    return Cap("rlimit+watchdog", budget_bytes, proc=proc)


def _data_limit_works() -> bool:
    """Return whether this kernel enforces RLIMIT_DATA on mapped memory, tried in a child process.

    Linux before 4.7, ``ignore_rlimit_data`` on the kernel's command line, and some sandboxes do not.
    """
    answer = subprocess.run([sys.executable, "-I", "-S", "-c", _PROBE], capture_output=True, check=False)
    return answer.stdout == b"limited\n"


def _open_watchdog(budget_bytes: int, proc: Path) -> Cap:
    try:
        process_footprint("self", proc)
    except OSError as error:
        raise Unavailable(
            f"this kernel does not tell a process's footprint (smaps_rollup: {error.strerror})"
        ) from error
    return Cap("watchdog", budget_bytes, proc=proc)


_OPENERS: dict[str, Callable[[int, Path], Cap]] = {
    "cgroup2": lambda budget_bytes, proc: _open_group(2, budget_bytes, proc),
    "systemd": _open_scope,
    "cgroup1": lambda budget_bytes, proc: _open_group(1, budget_bytes, proc),
    "rlimit+watchdog": _open_rlimit,
    "watchdog": _open_watchdog,
}
ENFORCEMENTS = tuple(_OPENERS)
