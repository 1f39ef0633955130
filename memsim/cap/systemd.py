"""A cap from systemd's user manager: ``systemd-run --user --scope`` starts the worker in a scope with ``MemoryMax``."""

import os
import select
import shutil
import subprocess
from pathlib import Path

from memsim.cap.cgroups import find_hierarchy
from memsim.cap.group import Group, Unavailable, owned_name, read_control
from memsim.cap.linux import PROC

_ANSWER_S = 10.0  # the manager is asked over D-Bus; one that does not answer is as good as none


def _command(unit: str, budget_bytes: int) -> list[str]:
    limits = ["-p", f"MemoryMax={budget_bytes}", "-p", "MemorySwapMax=0"]
    return ["systemd-run", "--user", "--scope", "--quiet", "--collect", f"--unit={unit}", *limits, "--"]


def open_scope(budget_bytes: int, proc: Path = PROC) -> tuple[list[str], Group]:
    """Try a scope and return the command that starts a process in another one like it, and the group it will have.

    The group exists while the process runs: systemd makes it and takes it away. In a scope ``systemd-run`` becomes the
    process, so its process id and its parent are those of the command.

    Raises:
        Unavailable: No ``systemd-run``, no user manager that answers, or its ``MemoryMax`` does not reach the kernel.
    """
    if shutil.which("systemd-run") is None:
        raise Unavailable("there is no systemd-run")
    mount = find_hierarchy(2, proc).mount
    name = owned_name(proc)
    trial = [*_command(f"{name}-trial.scope", budget_bytes), "/bin/sh", "-c", "echo ready; read line"]
    with subprocess.Popen(trial, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            path = mount / _group_of_trial(process, proc)
            limit = read_control(path / "memory.max")
        finally:
            process.kill()
    page = os.sysconf("SC_PAGE_SIZE")
    if limit not in (str(budget_bytes), str(budget_bytes // page * page)):
        raise Unavailable(f"systemd did not set memory.max of {path} (the memory controller is not delegated to users)")
    return _command(f"{name}.scope", budget_bytes), Group(2, path.with_name(f"{name}.scope"))


def _group_of_trial(process: "subprocess.Popen[bytes]", proc: Path) -> str:
    """Wait until the trial runs inside its scope and return the scope's group, from the root of the hierarchy."""
    if process.stdout is None or process.stderr is None or not select.select([process.stdout], [], [], _ANSWER_S)[0]:
        raise Unavailable(f"systemd-run did not answer in {_ANSWER_S:.0f} s")
    if process.stdout.readline() != b"ready\n":
        process.kill()
        reason = process.stderr.read(400).decode(errors="replace").strip().splitlines()
        raise Unavailable(reason[0] if reason else "systemd-run ended without a word")
    groups = read_control(proc / str(process.pid) / "cgroup").splitlines()
    path = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), "")
    if not path.endswith("-trial.scope"):
        raise Unavailable("systemd-run did not put the process into its scope")
    return path.lstrip("/")
