import mmap
import os
import subprocess
import sys

import pytest

from kernel_cap import MB, OBEDIENT, kernel_cap, start, tell, uncached_file
from memsim.cap.footprint import (
    AGE_S,
    GroupFootprint,
    NodeFootprint,
    ProcessStatus,
    group_error_bytes,
    parent_pid,
    process_footprint,
    start_time,
)
from memsim.files import file_system

SIZE = 32 << 20
# The odd interpreter page comes with an allocation: a sixteenth of it, plus what the kernel has not added up.
TOLERANCE = SIZE // 16 + group_error_bytes()


@pytest.fixture
def on_disk(tmp_path):
    if file_system(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip("the temporary directory is in memory: its pages are no file pages")
    return tmp_path


@pytest.fixture
def worker():
    with kernel_cap(1000 * MB) as cap, start(cap, OBEDIENT) as process:
        tell(process, "import mmap, os")
        yield process, GroupFootprint(cap.group_path)


def grown(worker, line):
    process, group = worker
    before = group.read_bytes()
    tell(process, line)
    return group.read_bytes() - before


def test_group_counts_anonymous_memory_until_it_is_freed(worker):
    assert grown(worker, f"kept = b'x' * {SIZE}") == pytest.approx(SIZE, abs=TOLERANCE)
    assert grown(worker, "del kept") == pytest.approx(-SIZE, abs=TOLERANCE)


def test_group_counts_shared_memory(worker):
    assert grown(worker, f"kept = mmap.mmap(-1, {SIZE}); kept.write(b'x' * {SIZE})") == pytest.approx(
        SIZE, abs=TOLERANCE
    )


def test_group_counts_written_file_pages_until_they_are_on_disk(worker, on_disk):
    write = f"file = open({str(on_disk / 'written')!r}, 'wb', buffering=0); file.write(b'x' * {SIZE})"
    assert grown(worker, write) == pytest.approx(SIZE, abs=TOLERANCE)
    assert grown(worker, "os.fsync(file.fileno())") == pytest.approx(-SIZE, abs=TOLERANCE)


def test_group_counts_dirty_pages_of_a_mapped_file(worker, on_disk):
    path = uncached_file(on_disk / "mapped", SIZE)  # a page is charged to the group that first brought it into memory
    change = f"file = open({str(path)!r}, 'r+b'); kept = mmap.mmap(file.fileno(), 0); kept.write(b'x' * {SIZE})"
    assert grown(worker, change) == pytest.approx(SIZE, abs=TOLERANCE)
    assert process_footprint(worker[0].pid) >= SIZE


def test_clean_file_pages_are_in_neither_footprint(worker, on_disk):
    process, group = worker
    path = uncached_file(on_disk / "clean", SIZE)
    before, alone = ProcessStatus(process.pid).sizes_bytes()["VmRSS"], process_footprint(process.pid)
    touch = (
        f"file = open({str(path)!r}, 'rb'); kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); sum(kept[::4096])"
    )
    assert abs(grown(worker, touch)) <= TOLERANCE
    assert abs(process_footprint(process.pid) - alone) <= TOLERANCE
    assert ProcessStatus(process.pid).sizes_bytes()["VmRSS"] - before >= SIZE * 15 // 16


def test_group_and_process_agree_on_a_process_without_files(worker):
    process, group = worker
    tell(process, f"kept = b'x' * {SIZE}")
    # The group also holds what the shell left behind and pages freed but not yet uncharged: part of the stated error.
    assert group.read_bytes() == pytest.approx(process_footprint(process.pid), abs=MB + group_error_bytes())


def test_reading_a_removed_group_fails():
    with kernel_cap(100 * MB) as cap:
        footprint = GroupFootprint(cap.group_path)
        assert footprint.read_bytes() <= group_error_bytes()
    with pytest.raises(OSError):
        footprint.read_bytes()
    footprint.close()
    footprint.close()


class CountingGroup:
    """A group that notes how often it is read."""

    def __init__(self):
        self.reads = 0

    def read_bytes(self):
        self.reads += 1
        return 1000 + self.reads


def test_the_node_loop_reads_the_group_when_memory_changed_or_time_passed():
    group = CountingGroup()
    footprint = NodeFootprint(group)
    first = footprint.read_bytes(1.0)
    # Python itself may take or return a page in between, but not each time.
    kept = [footprint.read_bytes(1.0 + step * AGE_S / 1000) for step in range(100)]
    assert kept[0] >= first and len(set(kept)) < 50
    before = group.reads
    # Fresh pages: an allocator might hand out some that are there already.
    grown = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(SIZE >> 20):
        grown.write(b"x" * (1 << 20))
    assert footprint.read_bytes(1.0 + AGE_S / 10) == 1000 + before + 1
    grown.close()
    assert footprint.read_bytes(1.0 + AGE_S / 10) == 1000 + before + 2
    assert footprint.read_bytes(1.0 + 3 * AGE_S) == 1000 + before + 3


def test_version_1_sums_the_plain_fields_only(tmp_path):
    fields = (
        "cache 7000 rss 100 rss_huge 9000 shmem 20 mapped_file 8000 dirty 3 writeback 400 swap 5000 total_rss 60000"
    )
    write_stat(tmp_path, fields)
    (tmp_path / "memory.limit_in_bytes").write_text("1")
    assert GroupFootprint(tmp_path).read_bytes() == 100 + 20 + 3 + 400 + 5000


def test_version_2_sums_anonymous_shared_dirty_and_swap(tmp_path):
    fields = "anon 100 file 9000 kernel 8000 shmem 20 file_mapped 7000 file_dirty 3 file_writeback 400 anon_thp 6000"
    write_stat(tmp_path, fields)
    assert GroupFootprint(tmp_path).read_bytes() == 100 + 20 + 3 + 400
    (tmp_path / "memory.swap.current").write_text("5000\n")
    assert GroupFootprint(tmp_path).read_bytes() == 100 + 20 + 3 + 400 + 5000


def write_stat(group, fields):
    words = iter(fields.split())
    (group / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in zip(words, words, strict=True)))


@pytest.mark.parametrize(("dirty", "anonymous", "expected"), [(30, 100, 107), (300, 100, 307)])
def test_process_footprint_takes_the_larger_of_anonymous_and_dirty(tmp_path, dirty, anonymous, expected):
    (tmp_path / "9").mkdir()
    (tmp_path / "9/smaps_rollup").write_text(
        "55d0-7ffc ---p 00000000 00:00 0                          [rollup]\n"
        f"Rss:               5000 kB\nShared_Clean:      4000 kB\nShared_Dirty:        10 kB\n"
        f"Private_Dirty: {dirty - 10} kB\nAnonymous: {anonymous} kB\nAnonHugePages: 900 kB\nSwap: 7 kB\nSwapPss: 3 kB\n"
    )
    assert process_footprint(9, tmp_path) == expected << 10


def test_process_figures_survive_a_name_with_brackets(tmp_path):
    (tmp_path / "9").mkdir()
    numbers = " ".join(str(field) for field in range(4, 53))  # from field 4, the parent, each holding its own number
    (tmp_path / "9/stat").write_text(f"9 (a) R 77 (b) S {numbers}\n")
    (tmp_path / "9/status").write_text("Name:\ta) R 77 (b\nVmHWM:\t   12 kB\nThreads:\t4\n")
    status = ProcessStatus(9, tmp_path)
    assert (parent_pid(9, tmp_path), status.major_faults(), start_time(9, tmp_path)) == (4, 12, 22)
    assert status.sizes_bytes() == {"VmHWM": 12 << 10}
    status.close()
    status.close()


def test_an_ended_process_has_no_start_time_even_before_it_is_waited_for():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert start_time(process.pid) > start_time()
        assert parent_pid(process.pid) == os.getpid()
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(process.pid) is None
    assert parent_pid(process.pid) is None
