"""A cap that the kernel itself enforces, and child processes to put under it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memsim.cap.open import Cap, open_cap
from memsim.errors import InputError

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


@contextmanager
def start(cap: Cap, code: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run Python under ``cap`` with ``code``, its stdin, stdout and stderr pipes of text; killed after the block."""
    argv = cap.command([sys.executable, "-c", code, *map(str, arguments)])
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: "subprocess.Popen[str]", line: str) -> str:
    """Have an `OBEDIENT` process execute ``line``, wait until it did, and return the line that it printed, if any."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    printed = process.stdout.readline()
    return "" if printed == "done\n" else printed + process.stdout.readline().removesuffix("done\n")


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
