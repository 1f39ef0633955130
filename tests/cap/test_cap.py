"""The cap with real processes under the real kernel of this machine."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kernel_cap import MB, OBEDIENT, kernel_cap, start, tell, uncached_file
from memsim.cap.cgroups import remove_stale_groups
from memsim.cap.footprint import start_time
from memsim.cap.group import owned_name
from memsim.cap.open import ENFORCEMENTS, open_cap
from memsim.errors import InputError, UsageError
from memsim.files import file_system

HOG = "import sys; kept = b'x' * int(sys.argv[1])"


def test_twice_the_budget_is_killed_by_the_kernel():
    with kernel_cap(64 * MB) as cap:
        assert cap.oom_kills() == 0
        with start(cap, HOG, 128 * MB) as process:
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert cap.oom_kills() == 1
        assert 60 * MB < cap.kernel_peak_bytes() <= 64 * MB
    assert not cap.group_path.exists()
    assert cap.oom_kills() == 1
    assert 60 * MB < cap.kernel_peak_bytes() <= 64 * MB


def test_half_the_budget_is_not_killed():
    with kernel_cap(64 * MB) as cap, start(cap, HOG, 32 * MB) as process:
        assert process.communicate() == ("", "")
    assert (process.returncode, cap.oom_kills()) == (0, 0)


def test_reading_a_file_twice_the_budget_does_not_kill(tmp_path):
    if file_system(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip("the temporary directory is in memory: its pages cannot be dropped")
    path = uncached_file(tmp_path / "weights", 128 << 20)
    read = "import sys\nwith open(sys.argv[1], 'rb') as file:\n    while file.read(1 << 20): pass"
    with kernel_cap(64 << 20) as cap, start(cap, read, path) as process:
        assert process.communicate() == ("", "")
    assert (process.returncode, cap.oom_kills()) == (0, 0)
    assert cap.kernel_peak_bytes() > 60 << 20  # the file did fill the group: the kernel took clean pages back


def test_process_is_in_its_group_before_its_first_instruction():
    arguments = ["a b", "$HOME", "'", '"', "", "new\nline", "-n", "*"]
    with kernel_cap(100 * MB) as cap:
        code = "import os, sys; print(os.getpid(), os.getppid(), sys.argv[1:]); print(open('/proc/self/cgroup').read())"
        with start(cap, code, *arguments) as process:
            output, _ = process.communicate()
        first, groups = output.split("\n", 1)
        assert first == f"{process.pid} {os.getpid()} {arguments}"
        assert cap.group_path.name in groups


def test_closing_kills_what_is_left_and_can_be_repeated():
    with kernel_cap(100 * MB) as cap, start(cap, OBEDIENT) as process:
        child = int(tell(process, "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"))
        assert start_time(child) is not None
        cap.close()
        assert process.wait(timeout=10) == -signal.SIGKILL
        assert start_time(child) is None
        assert not cap.group_path.exists()
        cap.close()


def test_two_caps_of_one_process_have_their_own_groups():
    with kernel_cap(100 * MB) as first, kernel_cap(200 * MB) as second:
        assert first.group_path != second.group_path
        assert first.group_path.name == owned_name()
        with start(second, HOG, 128 * MB) as process:
            process.communicate()
        assert process.returncode == 0
        assert first.kernel_peak_bytes() < 16 * MB


OWNER = """
import os, subprocess, sys, time
from memsim.cap.open import open_cap
cap = open_cap(10**8, sys.argv[1])
worker = "import os, sys, time; from memsim.cap.confine import die_with_parent\\n"
worker += "die_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(60)"
process = subprocess.Popen(cap.command([sys.executable, "-c", worker, str(os.getpid())]), stdout=subprocess.PIPE)
print(process.stdout.readline().decode().strip(), cap.group_path, flush=True)
time.sleep(60)
"""


def test_worker_dies_with_a_killed_parent_and_the_next_cap_removes_its_group():
    with kernel_cap(100 * MB) as cap:
        enforcement, groups = cap.enforcement, cap.group_path.parent
    with subprocess.Popen([sys.executable, "-c", OWNER, enforcement], stdout=subprocess.PIPE, text=True) as owner:
        try:
            worker, path = owner.stdout.readline().split(" ", 1)
            assert start_time(int(worker)) is not None
        finally:
            owner.kill()
    wait_until(lambda: start_time(int(worker)) is None)
    stale = groups / path.strip().rsplit("/", 1)[1]
    assert stale.is_dir()
    with kernel_cap(100 * MB) as cap:
        assert not stale.exists()
        assert cap.group_path.is_dir()


def test_stale_groups_lose_their_members_and_others_are_left_alone():
    with kernel_cap(100 * MB) as cap, subprocess.Popen(["sleep", "60"]) as member:
        groups = cap.group_path.parent
        stale = groups / f"memsim-{os.getpid()}-{start_time() - 1}"  # our process id, used again
        foreign = groups / "memsim-notes"
        for group in (stale, foreign):
            group.mkdir()
        try:
            (stale / "cgroup.procs").write_text(str(member.pid))
            assert stale in remove_stale_groups(groups)
            assert member.wait(timeout=10) == -signal.SIGKILL
            assert foreign.is_dir() and cap.group_path.is_dir() and not stale.exists()
        finally:
            member.kill()
            foreign.rmdir()


def test_a_group_that_vanished_refuses_the_worker_instead_of_running_it_uncapped():
    with kernel_cap(100 * MB) as cap:
        command = cap.command([sys.executable, "-c", "print('ran')"])
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 125
    assert answer.stdout == ""


@pytest.mark.parametrize("enforcement", ["rlimit+watchdog", "watchdog"])
def test_fallbacks_have_no_group(enforcement):
    with open_cap(100 * MB, enforcement) as cap:
        assert (cap.enforcement, cap.group_path, cap.oom_kills(), cap.kernel_peak_bytes()) == (
            enforcement,
            None,
            0,
            None,
        )
        assert cap.command(["python", "a b"]) == ["python", "a b"]
        assert cap.needs_watchdog
        assert cap.needs_data_limit == (enforcement == "rlimit+watchdog")
        with start(cap, OBEDIENT) as process:
            tell(process, "kept = b'x' * 50_000_000")
            assert 50 * MB < cap.footprint_bytes(process.pid) < 80 * MB


def test_the_best_way_is_taken_and_the_better_ones_say_why_not():
    with open_cap(100 * MB) as cap:
        assert [refusal.split(":")[0] for refusal in cap.refusals] == list(
            ENFORCEMENTS[: ENFORCEMENTS.index(cap.enforcement)]
        )


def test_a_budget_above_the_limit_around_us_is_refused():
    with kernel_cap(100 * MB) as cap:
        code = "from memsim.cap.open import open_cap; open_cap(200 * 10**6, 'watchdog')"
        with start(cap, code) as process:
            _, errors = process.communicate()
    assert process.returncode == 1
    assert "InputError: the budget of 190.7 MiB is more than the 95.4 MiB to which a cgroup around" in errors


def test_wrong_calls_are_named():
    with pytest.raises(UsageError, match="a budget of 0 bytes cannot hold a process"):
        open_cap(0)
    with pytest.raises(UsageError, match=r"'jail' is no enforcement; use one of cgroup2, systemd, cgroup1"):
        open_cap(MB, "jail")


def test_a_machine_without_proc_is_refused(tmp_path):
    with pytest.raises(InputError, match="needs Linux"):
        open_cap(MB, proc=tmp_path)


def wait_until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)
