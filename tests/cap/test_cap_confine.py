"""What a worker does to itself, in real child processes."""

import os
import signal
import subprocess
import sys

from memsim.cap.open import open_cap

START = "import os, sys; from memsim.cap.confine import die_with_parent, limit_data\n"


def run(code, *arguments):
    command = [sys.executable, "-c", START + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_worker_whose_parent_is_already_gone_ends_at_once():
    assert run("die_with_parent(int(sys.argv[1])); print('alive')", os.getpid()).stdout == "alive\n"
    orphan = run("die_with_parent(1 << 30); print('alive')")
    assert (orphan.returncode, orphan.stdout) == (-signal.SIGKILL, "")


LIMITED = """
import mmap, resource
from memsim.cap.footprint import process_footprint
reserved = mmap.mmap(-1, 300_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # mapped, not touched
limit = limit_data(100_000_000)
assert limit > 300_000_000 and resource.getrlimit(resource.RLIMIT_DATA) == (limit, limit)
kept = []
try:
    while True:
        kept.append(b"x" * 1_000_000)
except MemoryError:
    print(process_footprint())
"""


def test_data_limit_holds_the_footprint_at_the_budget_whatever_was_reserved_before():
    open_cap(100_000_000, "rlimit+watchdog").close()  # refuses where the kernel ignores RLIMIT_DATA
    answer = run(LIMITED)
    assert answer.stderr == ""
    assert 95_000_000 < int(answer.stdout) <= 100_000_000 + 2_000_000  # the message and the last free heap pages


def test_data_limit_below_what_is_used_leaves_nothing_to_allocate():
    answer = run("limit_data(1)\ntry: kept = bytes(10**8)\nexcept MemoryError: print('full')")
    assert answer.stdout == "full\n"


def test_data_limit_does_not_exceed_an_older_hard_limit():
    code = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 28, 1 << 28)); print(limit_data(1 << 40))"
    assert run(code).stdout == f"{1 << 28}\n"
