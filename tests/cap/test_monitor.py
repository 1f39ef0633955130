import signal

import pytest

from kernel_cap import MB, OBEDIENT, kernel_cap, start, tell, uncached_file
from memsim.cap.confine import EXIT_OUT_OF_MEMORY
from memsim.cap.footprint import ProcessStatus, group_error_bytes, process_footprint
from memsim.cap.monitor import Monitor, Sample, Sampler, describe_exit, exit_reason
from memsim.cap.open import Cap, open_cap
from memsim.cap.thrashing import Stall
from memsim.files import file_system


class FakeWorker:
    pid = 1 << 30

    def __init__(self):
        self.kills = 0

    def kill(self):
        self.kills += 1


def watched(samples, enforcement="watchdog", budget_bytes=100 * MB, seconds_apart=0.5):
    """Poll a monitor once per sample, ``seconds_apart``; None among the samples is a finished node."""
    now = [0.0]
    pending = [Sample(0, 0, 0)]
    worker = FakeWorker()
    monitor = Monitor(worker, Cap(enforcement, budget_bytes), sample=lambda: pending[0], clock=lambda: now[0])
    for sample in samples:
        now[0] += seconds_apart
        if sample is None:
            monitor.node_done()
        else:
            pending[0] = sample
            monitor.poll()
    return monitor, worker


def climbing(n_samples, first=0, step=7):
    return [Sample(MB, 2 * MB, first + step * index) for index in range(1, n_samples + 1)]


def test_no_node_for_thirty_seconds_while_faults_climb_is_thrashing():
    monitor, worker = watched(climbing(59))
    assert (monitor.verdict, worker.kills) == (None, 0)
    monitor, worker = watched(climbing(70))
    assert (monitor.verdict, worker.kills, monitor.major_faults) == ("thrashing", 1, 70 * 7)


def test_a_finished_node_starts_the_stall_anew():
    samples = [*climbing(50), None, *climbing(50, first=350), None, *climbing(50, first=700)]
    monitor, worker = watched(samples)
    assert (monitor.verdict, worker.kills) == (None, 0)
    assert watched([*samples, *climbing(20, first=1050)])[0].verdict == "thrashing"


def test_a_long_computation_is_not_thrashing():
    early_faults = [*climbing(20), *[Sample(MB, MB, 140)] * 400]
    monitor, worker = watched(early_faults)
    assert (monitor.verdict, worker.kills) == (None, 0)


def test_the_stall_counts_faults_in_half_of_its_parts():
    for period_s, expected in ((2, True), (4, False)):
        stall = Stall(0.0, stall_s=30.0)
        over = [stall.is_over(float(now_s), now_s // period_s) for now_s in range(1, 61)]
        assert any(over) == expected
        assert not any(over[:29])


def test_the_watchdog_kills_over_the_budget_once_and_keeps_the_peak():
    samples = [Sample(size * MB, size * 2 * MB, 0) for size in (40, 100, 101, 120, 60)]
    monitor, worker = watched(samples)
    assert (monitor.verdict, worker.kills) == ("killed_at_cap", 1)
    assert (monitor.peak_footprint_bytes, monitor.peak_rss_bytes) == (120 * MB, 240 * MB)
    monitor, worker = watched(samples[:2])
    assert (monitor.verdict, worker.kills) == (None, 0)


def test_with_a_kernel_group_the_kernel_alone_kills_at_the_cap():
    with kernel_cap(100 * MB) as cap:
        monitor = Monitor(FakeWorker(), cap, sample=lambda: Sample(101 * MB, 0, 0))
        monitor.poll()
    assert (monitor.verdict, monitor.peak_footprint_bytes) == (None, 101 * MB)


def test_a_worker_that_is_not_there_is_no_sample():
    with open_cap(100 * MB, "watchdog") as cap:
        assert Sampler(FakeWorker.pid, cap)() is None
        monitor = Monitor(FakeWorker(), cap)
        monitor.poll()
        assert monitor.peak_footprint_bytes == 0


@pytest.mark.parametrize("way", ["group", "watchdog"])
def test_peak_of_a_real_worker_is_seen_after_it_was_freed(way):
    size = 64 << 20
    with kernel_cap(500 * MB) if way == "group" else open_cap(500 * MB, way) as cap, start(cap, OBEDIENT) as process:
        tell(process, "import time")
        before = cap.footprint_bytes(process.pid)
        with Monitor(process, cap) as monitor:
            tell(process, f"kept = b'x' * {size}; time.sleep(0.2); del kept")
            after = cap.footprint_bytes(process.pid)
        assert after < before + size // 2
        assert monitor.peak_footprint_bytes == pytest.approx(before + size, abs=2 * MB + group_error_bytes())
        assert monitor.peak_rss_bytes >= ProcessStatus(process.pid).sizes_bytes()["VmHWM"] - MB >= size
        monitor.stop()


def test_watchdog_walks_seldom_unless_the_worker_grows():
    with open_cap(500 * MB, "watchdog") as cap, start(cap, OBEDIENT) as process:
        tell(process, "kept = []")
        clock = [0.0]
        sampler = Sampler(process.pid, cap, clock=lambda: clock.__setitem__(0, clock[0] + 0.001) or clock[0])
        first = sampler().footprint_bytes
        tell(process, "kept.append(b'x' * 500_000)")
        assert sampler().footprint_bytes == first  # the walk took a millisecond of this clock: none for the next fifty
        tell(process, "kept.append(b'x' * 20_000_000)")
        assert sampler().footprint_bytes >= first + 20_000_000
        tell(process, "kept.clear()")
        clock[0] += 0.05
        assert sampler().footprint_bytes == process_footprint(process.pid) < first + MB


HOGS = {
    # Private memory meets RLIMIT_DATA and raises; shared memory is not counted there, so the watchdog must see it.
    "private": ("rlimit+watchdog", "kept = b'x' * 200_000_000", EXIT_OUT_OF_MEMORY, None),
    "shared": ("rlimit+watchdog", SHARED := "import mmap; kept = mmap.mmap(-1, 200_000_000)\n"
               "for start in range(0, 200_000_000, 1_000_000): kept[start : start + 1_000_000] = b'x' * 1_000_000\n"
               "import time; time.sleep(60)", -signal.SIGKILL, "killed_at_cap"),
    "alone": ("watchdog", "import time; kept = b'x' * 200_000_000; time.sleep(60)", -signal.SIGKILL, "killed_at_cap"),
}  # fmt: skip


@pytest.mark.parametrize("hog", HOGS)
def test_without_a_group_a_hog_is_stopped(hog):
    enforcement, allocate, returncode, verdict = HOGS[hog]
    limit = "limit_data(100_000_000)" if enforcement == "rlimit+watchdog" else "pass"
    code = (
        "import os, sys\nfrom memsim.cap.confine import EXIT_OUT_OF_MEMORY, limit_data\n"
        f"{limit}\ntry:\n    exec(sys.argv[1])\nexcept MemoryError:\n    os._exit(EXIT_OUT_OF_MEMORY)\n"
    )
    with open_cap(100 * MB, enforcement) as cap, start(cap, code, allocate) as process:
        with Monitor(process, cap) as monitor:
            process.communicate()
        assert (process.returncode, monitor.verdict) == (returncode, verdict)
        assert exit_reason(process.returncode, cap, monitor) == "killed_at_cap"


THRASH = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
while True:
    sum(pages[:: mmap.PAGESIZE])
"""


def test_a_worker_squeezed_below_its_file_pages_is_stopped(tmp_path):
    if file_system(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip("the temporary directory is in memory: its pages cannot be dropped")
    path = uncached_file(tmp_path / "weights", 96 << 20)
    with kernel_cap(48 << 20) as cap, start(cap, THRASH, path) as process:
        with Monitor(process, cap, stall_s=2.0) as monitor:
            process.communicate(timeout=60)
        assert (process.returncode, monitor.verdict) == (-signal.SIGKILL, "thrashing")
        assert monitor.major_faults >= 15  # one in each of half of the thirty parts
        assert exit_reason(process.returncode, cap, monitor) == "thrashing"
        assert cap.oom_kills() == 0


def ended(code):
    with open_cap(500 * MB, "watchdog") as cap, start(cap, code) as process:
        process.communicate()
        return process.returncode, exit_reason(process.returncode, cap, Monitor(process, cap))


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        ("pass", "done", "exit code 0"),
        ("raise ValueError", "error", "exit code 1"),
        (f"import os; os._exit({EXIT_OUT_OF_MEMORY})", "error", f"exit code {EXIT_OUT_OF_MEMORY}"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "error", "signal SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "killed", "signal SIGTERM"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", "signal SIGKILL"),
    ],
)
def test_every_end_has_its_word(code, reason, words):
    returncode, found = ended(code)
    assert (found, describe_exit(returncode)) == (reason, words)


def test_a_real_time_signal_has_a_number():
    assert describe_exit(-(signal.SIGRTMIN + 1)) == f"signal {signal.SIGRTMIN + 1}"


def test_killed_by_the_kernel_at_the_cap_and_killed_by_hand_differ():
    with kernel_cap(64 * MB) as cap:
        with start(cap, OBEDIENT) as process, Monitor(process, cap) as by_hand:
            tell(process, "kept = 1")
            process.kill()
            process.wait()
        assert exit_reason(process.returncode, cap, by_hand) == "killed"
        with start(cap, "kept = b'x' * 128_000_000") as process, Monitor(process, cap) as by_kernel:
            process.communicate()
        assert exit_reason(process.returncode, cap, by_kernel) == "killed_at_cap"
    assert exit_reason(process.returncode, cap, by_kernel) == "killed_at_cap"
