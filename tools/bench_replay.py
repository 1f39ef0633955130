"""Measure ``memsim replay`` of a large capture: ``python tools/bench_replay.py [--events N] [--directory DIR]``.

The capture is written as memray writes it, by a tight loop of allocations under its Tracker, and removed afterwards:
180 million allocations and frees are about 1 GB. Prints the seconds and the memory of the replay, all its processes
together; takes some minutes and two and a half times the capture on disk.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

LIMIT_S = 60
LIMIT_BYTES = 500 * 10**6

WRITER = """
import sys
from memray import FileDestination, Tracker

def allocate(i):
    return bytearray(600 + i * 2654435761 % 4000)

def loop(n):
    held = [None] * 4096
    for i in range(n):
        held[i * 7919 % 4096] = allocate(i)

with Tracker(destination=FileDestination(sys.argv[1], compress_on_exit=True)):
    loop(int(sys.argv[2]) // 2)
"""


def main() -> int:
    """Write a capture, replay it, remove it; return 0 if both limits hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=180_000_000, help="allocations and frees (default %(default)s)")
    parser.add_argument("--directory", default="/var/tmp", help="where the capture goes (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        capture = Path(directory) / "capture.bin"
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", WRITER, str(capture), str(options.events)], check=True)
        size = capture.stat().st_size
        print(f"wrote {size / 1e6:,.0f} MB, {options.events:,} events, in {time.perf_counter() - start:.0f} s")
        seconds, peak_bytes = replay(capture)
    print(f"replayed in {seconds:.1f} s ({seconds / options.events * 1e9:.0f} ns an event)")
    print(f"with {peak_bytes / 1e6:.0f} MB of memory")
    fits = seconds < LIMIT_S and peak_bytes < LIMIT_BYTES
    print(f"{'within' if fits else 'OVER'} {LIMIT_S} s and {LIMIT_BYTES / 1e6:.0f} MB")
    return 0 if fits else 1


def replay(capture: Path) -> tuple[float, int]:
    """Return the seconds that a replay takes and the most memory that its processes hold at once."""
    start, peak_bytes = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, "-m", "memsim", "replay", str(capture)]) as process:
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            peak_bytes = max(peak_bytes, sum(map(_resident, [parent, *_children(parent)])))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"memsim replay ended with exit code {process.returncode}")
    return time.perf_counter() - start, peak_bytes


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    sys.exit(main())
