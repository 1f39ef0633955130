"""Machines that this one is not, as trees of plain files: cgroup version 2, delegation, systemd, containers.

They hold the logic, not the kernel: cgroup version 2 and systemd have not been tried on a real machine.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memsim.cap import cgroups, group
from memsim.cap.footprint import start_time
from memsim.cap.group import Unavailable, owned_name
from memsim.cap.open import open_cap
from memsim.errors import InputError

MB = 10**6
REAL_MKDIR, REAL_RMDIR, REAL_WRITE = Path.mkdir, Path.rmdir, group.write_control
V1_FILES = {
    "memory.limit_in_bytes": "9223372036854771712",
    "memory.memsw.limit_in_bytes": "9223372036854771712",
    "memory.swappiness": "60",
    "memory.oom_control": "oom_kill_disable 1\nunder_oom 0\noom_kill 0",
    "memory.max_usage_in_bytes": "4096",
}
V2_FILES = {
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.oom.group": "0",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0",
    "memory.peak": "4096",
}


class FakeMachine:
    """A proc and a cgroup tree whose directories and control files behave as the kernel's where memsim relies on it."""

    def __init__(self, root, monkeypatch, version, own, mount_root="/", delegated=True):
        self.version = version
        self.mount = root / "cgroup größe"
        self.proc = root / "proc"
        self.own = self.mount / os.path.relpath(own, mount_root)
        (self.proc / "self").mkdir(parents=True)
        kind, options = ("cgroup", "rw,memory") if version == 1 else ("cgroup2", "rw,nsdelegate")
        mount = str(self.mount).replace(" ", "\\040")
        (self.proc / "self/mountinfo").write_text(
            "31 23 0:28 / /sys rw - tmpfs tmpfs rw\n"
            f"35 31 0:32 {mount_root} {mount} rw,relatime shared:9 - {kind} cgroup {options}\n"
        )
        lines = f"4:cpu:/other\n3:memory:{own}\n" if version == 1 else f"0::{own}\n"
        (self.proc / "self/cgroup").write_text(lines)
        (self.proc / "swaps").write_text("Filename Type Size Used Priority\n")
        for name in ("self", str(os.getpid())):
            (self.proc / name).mkdir(exist_ok=True)
            (self.proc / name / "stat").write_bytes(Path("/proc/self/stat").read_bytes())
        monkeypatch.setattr(Path, "mkdir", lambda path, *args, **kw: self.mkdir(path, *args, **kw))
        monkeypatch.setattr(Path, "rmdir", lambda path: self.rmdir(path))
        monkeypatch.setattr(group, "write_control", self.write)
        monkeypatch.setattr(cgroups, "write_control", self.write)
        self.mount.mkdir()
        if delegated and version == 2:
            self._enable(self.mount)
        for path in reversed([p for p in (self.own, *self.own.parents) if p.is_relative_to(self.mount)]):
            if not path.exists():
                path.mkdir()
            if delegated and version == 2 and path != self.own:
                self._enable(path)
        (self.own / "cgroup.procs").write_text(str(os.getpid()))

    def _enable(self, path):
        (path / "cgroup.subtree_control").write_text("memory pids")

    def mkdir(self, path, *args, **kw):
        REAL_MKDIR(path, *args, **kw)
        if path.is_relative_to(self.mount):
            (path / "cgroup.procs").write_text("")
            self._fill(path)

    def _fill(self, path):
        has_memory = self.version == 1 or "memory" in self.read(path.parent / "cgroup.subtree_control")
        files = (V1_FILES if self.version == 1 else V2_FILES) if has_memory else {}
        if self.version == 2:
            files = files | {"cgroup.controllers": "memory pids" if has_memory else "", "cgroup.subtree_control": ""}
        for name, text in files.items():
            (path / name).write_text(text)

    def rmdir(self, path):
        if path.is_relative_to(self.mount):
            if any(start_time(pid) for pid in self.read(path / "cgroup.procs").split()):
                raise OSError(errno.EBUSY, "busy")
            for file in path.iterdir():
                file.unlink()
        REAL_RMDIR(path)

    def write(self, file, value):
        if file.name == "cgroup.procs":
            for other in self.mount.rglob("cgroup.procs"):
                left = [pid for pid in self.read(other).split() if pid != str(value)]
                other.write_text("\n".join([*left, str(value)] if other == file else left))
        elif file.name == "cgroup.subtree_control":
            if self.read(file.parent / "cgroup.procs"):
                raise OSError(errno.EBUSY, "a group with processes gives no controllers")
            file.write_text(value.removeprefix("+"))
            for child in filter(Path.is_dir, file.parent.iterdir()):
                self._fill(child)
        else:
            REAL_WRITE(file, value)

    @staticmethod
    def read(file):
        return file.read_text() if file.exists() else ""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return lambda version, own, **kw: FakeMachine(tmp_path, monkeypatch, version, own, **kw)


def test_version_2_limits_a_group_below_a_delegated_one(machine):
    fake = machine(2, "/user.slice/run-7.scope")
    with open_cap(100 * MB, proc=fake.proc) as cap:
        assert (cap.enforcement, cap.refusals) == ("cgroup2", ())
        assert cap.group_path == fake.own / owned_name(fake.proc)
        limits = {name: (cap.group_path / name).read_text() for name in V2_FILES if name.endswith(("max", "group"))}
        assert limits == {"memory.max": "100000000", "memory.swap.max": "0", "memory.oom.group": "1"}
        assert (fake.own / "cgroup.subtree_control").read_text() == "memory"
        leaf = fake.own / f"{owned_name(fake.proc)}-parent"
        assert (leaf / "cgroup.procs").read_text() == str(os.getpid())  # a group with processes gives no controllers
        (cap.group_path / "memory.events").write_text("oom 3\noom_kill 2\noom_group_kill 1\n")
        (cap.group_path / "memory.peak").write_text("99999744\n")
        worker = cap.command([sys.executable, "-c", "import os; print(os.getpid())"])
        pid = subprocess.run(worker, capture_output=True, text=True, check=True).stdout
        assert (cap.group_path / "cgroup.procs").read_text() == pid
    assert not cap.group_path.exists()
    assert (cap.oom_kills(), cap.kernel_peak_bytes()) == (2, 99999744)


def test_version_2_finds_its_way_from_the_leaf_of_an_earlier_cap(machine):
    fake = machine(2, "/run-7.scope")
    with open_cap(100 * MB, proc=fake.proc) as first:
        (fake.proc / "self/cgroup").write_text(f"0::/run-7.scope/{owned_name(fake.proc)}-parent\n")
    with open_cap(100 * MB, proc=fake.proc) as second:
        assert second.group_path == first.group_path


@pytest.mark.parametrize("delegated", [True, False])
def test_version_2_leaves_the_processes_of_others_where_they_are(machine, delegated):
    fake = machine(2, "/run-7.scope", delegated=delegated)
    (fake.own / "cgroup.procs").write_text(f"1\n{os.getpid()}")
    (fake.proc / "1").mkdir()
    (fake.proc / "1/stat").write_text("1 (init) S 0 1 1\n")
    reason = "holds 1 other processes; memsim does not move them" if delegated else "is not delegated to"
    with pytest.raises(InputError, match=reason):
        open_cap(100 * MB, "cgroup2", fake.proc)
    assert (fake.own / "cgroup.procs").read_text() == f"1\n{os.getpid()}"
    assert not list(fake.own.glob("memsim-*"))


def test_version_2_takes_its_children_along(machine):
    fake = machine(2, "/run-7.scope")
    (fake.own / "cgroup.procs").write_text(f"{os.getpid()}\n4000001")
    (fake.proc / "4000001").mkdir()
    (fake.proc / "4000001/stat").write_text(f"4000001 (tracker) S {os.getpid()} 1 1\n")
    with open_cap(100 * MB, "cgroup2", fake.proc):
        leaf = fake.own / f"{owned_name(fake.proc)}-parent"
        assert (leaf / "cgroup.procs").read_text().split() == [str(os.getpid()), "4000001"]


def test_version_2_moves_back_when_the_controller_is_refused(machine, monkeypatch):
    fake = machine(2, "/run-7.scope")

    def refuse(file, value):
        if file.name == "cgroup.subtree_control":
            raise OSError(errno.EACCES, "Permission denied")
        fake.write(file, value)

    monkeypatch.setattr(cgroups, "write_control", refuse)
    with pytest.raises(InputError, match=r"cannot enable the memory controller below .*run-7.scope: Permission denied"):
        open_cap(100 * MB, "cgroup2", fake.proc)
    assert (fake.own / "cgroup.procs").read_text() == str(os.getpid())
    assert not list(fake.own.glob("memsim-*"))


def test_swap_that_cannot_be_forbidden_is_refused(machine, monkeypatch):
    fake = machine(2, "/run-7.scope")
    monkeypatch.delitem(V2_FILES, "memory.swap.max")
    with open_cap(100 * MB, "cgroup2", fake.proc):
        pass
    (fake.proc / "swaps").write_text("Filename Type Size Used Priority\n/swapfile file 2097148 0 -2\n")
    with pytest.raises(InputError, match="the machine swaps, and the kernel has no memory.swap.max"):
        open_cap(100 * MB, "cgroup2", fake.proc)
    assert [path.name for path in fake.own.glob("memsim-*")] == [f"{owned_name(fake.proc)}-parent"]


def test_version_1_limits_memory_and_swap_and_lets_the_kernel_kill(machine):
    fake = machine(1, "/docker/7f", mount_root="/docker/7f")  # a container sees its own group as the root
    with open_cap(100 * MB, "cgroup1", fake.proc) as cap:
        assert cap.group_path.parent == fake.mount
        text = {name: (cap.group_path / name).read_text() for name in V1_FILES}
        assert text["memory.limit_in_bytes"] == text["memory.memsw.limit_in_bytes"] == "100000000"
        assert text["memory.swappiness"] == text["memory.oom_control"] == "0"
    assert not cap.group_path.exists()


def test_a_group_outside_what_is_mounted_is_not_guessed(machine):
    fake = machine(1, "/docker/7f", mount_root="/docker/7f")
    (fake.proc / "self/cgroup").write_text("3:memory:/docker/other\n")
    with pytest.raises(Unavailable, match="no cgroup version 1 memory hierarchy is mounted that holds this process"):
        cgroups.find_hierarchy(1, fake.proc)


def test_a_group_that_nobody_may_join_is_refused_and_removed(machine, monkeypatch):
    fake = machine(1, "/alice")
    make = fake.mkdir

    def make_closed(path, *args, **kw):
        make(path, *args, **kw)
        (path / "cgroup.procs").unlink()
        REAL_MKDIR(path / "cgroup.procs")  # root may write to any file, but to no directory

    monkeypatch.setattr(Path, "mkdir", make_closed)
    monkeypatch.setattr(Path, "rmdir", lambda path: (REAL_RMDIR(path / "cgroup.procs"), fake.rmdir(path)))
    with pytest.raises(InputError, match=r"no process can join .*memsim-"):
        open_cap(100 * MB, "cgroup1", fake.proc)
    assert not list(fake.own.glob("memsim-*"))


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_around_us_counts(machine, version):
    fake = machine(version, "/pod/container")
    assert cgroups.enclosing_limit_bytes(fake.proc) is None
    file = "memory.limit_in_bytes" if version == 1 else "memory.max"
    (fake.mount / "pod" / file).write_text("50000000\n")
    (fake.own / file).write_text("70000000\n")
    assert cgroups.enclosing_limit_bytes(fake.proc) == 50 * MB
    with pytest.raises(InputError, match="more than the 47.7 MiB to which a cgroup around this process is limited"):
        open_cap(60 * MB, proc=fake.proc)


def test_stale_groups_are_those_of_dead_owners(machine):
    fake = machine(1, "/alice")
    mine = owned_name(fake.proc)
    names = ["memsim-4000001-5", "memsim-4000001-5-2", "memsim-4000001-5-parent", f"memsim-{os.getpid()}-1"]
    kept = [mine, f"{mine}-2", "memsim-4000001", "memsim-4000001-5.scope", "memsim-4000002-5", "alice-4000001-5"]
    for name in names + kept:
        (fake.own / name).mkdir()
    (fake.own / "memsim-4000002-5/cgroup.procs").write_text("0")  # a process in a foreign pid namespace
    assert sorted(path.name for path in cgroups.remove_stale_groups(fake.own, fake.proc)) == sorted(names)
    assert sorted(path.name for path in fake.own.iterdir() if path.is_dir()) == sorted(kept)


SYSTEMD_RUN = """#!/bin/sh
while [ "$1" != "--" ]; do
  case "$1" in --unit=*) unit=${1#--unit=};; MemoryMax=*) max=${1#MemoryMax=};; MemorySwapMax=*) swap=${1#*=};; esac
  shift
done
shift
mkdir -p "$FAKE_MOUNT/app.slice/$unit" "$FAKE_PROC/$$"
echo "${FAKE_MAX:-$max}" > "$FAKE_MOUNT/app.slice/$unit/memory.max"
echo "$swap" > "$FAKE_MOUNT/app.slice/$unit/memory.swap.max"
echo "0::/app.slice/$unit" > "$FAKE_PROC/$$/cgroup"
exec "$@"
"""


@pytest.fixture
def systemd(machine, tmp_path, monkeypatch):
    fake = machine(2, "/session-3.scope", delegated=False)
    program = tmp_path / "bin/systemd-run"
    program.parent.mkdir()
    program.write_text(SYSTEMD_RUN)
    program.chmod(0o755)
    (fake.mount / "app.slice").mkdir()
    (fake.mount / "app.slice/memory.events").write_text("oom_kill 5\n")
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_MOUNT", str(fake.mount))
    monkeypatch.setenv("FAKE_PROC", str(fake.proc))
    return fake


def test_systemd_runs_the_worker_in_a_scope_with_the_limit(systemd):
    with open_cap(100 * MB, proc=systemd.proc) as cap:
        assert cap.enforcement == "systemd"
        assert [refusal.split(":")[0] for refusal in cap.refusals] == ["cgroup2"]
        code = "import os, sys; print(os.getpid(), sys.argv[1:])"
        with subprocess.Popen(cap.command([sys.executable, "-c", code, "a b"]), stdout=subprocess.PIPE) as worker:
            assert worker.stdout.read().decode() == f"{worker.pid} ['a b']\n"
        assert cap.group_path == systemd.mount / "app.slice" / f"{owned_name(systemd.proc)}.scope"
        assert (cap.group_path / "memory.max").read_text() == "100000000\n"
        assert (cap.group_path / "memory.swap.max").read_text() == "0\n"
        (cap.group_path / "memory.peak").write_text("99999744")
        assert cap.kernel_peak_bytes() == 99999744
        assert cap.oom_kills() == 0
        systemd.rmdir(cap.group_path)  # as systemd does when the worker ends; its slice keeps the count
        (systemd.mount / "app.slice/memory.events").write_text("oom_kill 6\n")
    assert (cap.oom_kills(), cap.kernel_peak_bytes()) == (1, 99999744)


def test_systemd_whose_limit_does_not_reach_the_kernel_is_refused(systemd, monkeypatch):
    monkeypatch.setenv("FAKE_MAX", "max")
    with pytest.raises(InputError, match=r"systemd: systemd did not set memory.max of .*-trial.scope"):
        open_cap(100 * MB, "systemd", systemd.proc)


def test_systemd_without_a_user_manager_is_refused(systemd, tmp_path):
    (tmp_path / "bin/systemd-run").write_text(
        "#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2\nexit 1\n"
    )
    with pytest.raises(InputError, match="systemd: Failed to connect to bus: No medium found"):
        open_cap(100 * MB, "systemd", systemd.proc)


def test_no_way_at_all_says_why_each_does_not_work(machine, monkeypatch):
    fake = machine(2, "/session-3.scope", delegated=False)
    monkeypatch.setenv("PATH", str(fake.proc))
    with pytest.raises(InputError) as refused:
        open_cap(100 * MB, proc=fake.proc)
    text = str(refused.value)
    for part in ("cgroup2: the memory controller", "systemd: there is no systemd-run", "cgroup1: no cgroup version 1"):
        assert part in text
    assert "watchdog: this kernel does not tell a process's footprint (smaps_rollup: No such file" in text
