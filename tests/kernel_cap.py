"""A cap that the kernel itself enforces, and child processes to put under it."""

import subprocess
import sys
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.runtime.cap import Cap, open_cap

MB = 10**6
# Executes the lines it is sent, one by one, and answers each: the test measures between them.
OBEDIENT = "import sys\nfor line in sys.stdin:\n    exec(line)\n    print('done', flush=True)\n"


def kernel_cap(budget_bytes: int) -> Cap:
    """Return a cap by a cgroup, or skip the test where none can be made."""
    refusals = []
    for enforcement in ("cgroup2", "cgroup1"):
        try:
            return open_cap(budget_bytes, enforcement)
        except InputError as error:
            refusals.append(str(error))
    pytest.skip(f"no memory cgroup can be made: {refusals}")


def start(cap: Cap, code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Start Python under ``cap`` with ``code``; its stdin and stdout are pipes of text."""
    argv = cap.command([sys.executable, "-c", code, *map(str, arguments)])
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tell(process: "subprocess.Popen[str]", line: str) -> None:
    """Have an `OBEDIENT` process execute ``line``, and wait until it did."""
    process.stdin.write(line + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n", process.stderr.read()


def uncached_file(path: Path, n_bytes: int) -> Path:
    """Write a file that is not in the page cache, so that whoever reads it is charged for its pages."""
    code = (
        "import os, sys\n"
        "with open(sys.argv[1], 'wb') as file:\n"
        "    for _ in range(int(sys.argv[2]) >> 20):\n"
        "        file.write(os.urandom(1 << 20))\n"
        "    file.flush()\n"
        "    os.fsync(file.fileno())\n"
        "    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(n_bytes)], check=True)
    return path
