import pytest

from memsim.simulator.flash import Flash
from memsim.simulator.pagecache import PageCache
from memsim.simulator.trace import FileRead
from phones import KIB, numbers

LATENCY_S, RATE, FAULT_S = 1e-4, 1e9, 1e-6
FILE = FileRead("block_000", 2000 * KIB, 2000 * KIB)
PAGES = 125  # of 16 KiB


def _flash(advised: bool = True, cache: PageCache | None = None, speed: float = 1.0, **changes: float) -> Flash:
    return Flash(numbers(**changes), cache or PageCache(10**9), advised, speed)


def test_a_whole_file_is_one_long_read() -> None:
    assert _flash().page_in(5.0, FILE) == pytest.approx(LATENCY_S + FILE.n_bytes / RATE + PAGES * FAULT_S)
    assert _flash(speed=0.5).page_in(5.0, FILE) == pytest.approx(
        2 * (LATENCY_S + FILE.n_bytes / RATE) + PAGES * FAULT_S
    )


def test_faults_read_clusters_that_grow() -> None:
    # 32 + 64 + 128 + 256 + 512 + 512 + 496 KiB.
    expected = 7 * LATENCY_S + FILE.n_bytes / RATE + PAGES * FAULT_S
    assert _flash(advised=False).page_in(0.0, FILE) == pytest.approx(expected)
    # At one size from the start: 63 of 32 KiB.
    fixed = _flash(advised=False, cluster_max_bytes=32 * KIB).page_in(0.0, FILE)
    assert fixed == pytest.approx(63 * LATENCY_S + FILE.n_bytes / RATE + PAGES * FAULT_S)


@pytest.mark.parametrize("advised", [True, False])
def test_what_is_cached_costs_only_its_faults(advised: bool) -> None:
    cache = PageCache(10**9)
    first = _flash(advised, cache)
    first.page_in(0.0, FILE)
    assert first.read_bytes == FILE.n_bytes
    again = _flash(advised, cache)
    assert again.page_in(3.0, FILE) == pytest.approx(PAGES * FAULT_S)
    assert again.read_bytes == 0


def test_a_prefetch_overlaps_with_what_happens_meanwhile() -> None:
    reading_s = LATENCY_S + FILE.n_bytes / RATE
    for waited_s, left_s in ((0.0, reading_s), (reading_s / 2, reading_s / 2), (1.0, 0.0)):
        flash = _flash()
        flash.prefetch(7.0, FILE)
        assert flash.page_in(7.0 + waited_s, FILE) == pytest.approx(left_s + PAGES * FAULT_S)
        assert flash.read_bytes == FILE.n_bytes


def test_the_flash_does_one_thing_at_a_time() -> None:
    flash, other = _flash(), FileRead("head", 10**6, 10**6)
    flash.prefetch(0.0, FILE)
    reading_s = LATENCY_S + FILE.n_bytes / RATE
    assert flash.write(0.0, 5 * 10**5) == pytest.approx(reading_s + LATENCY_S + 1e-3)
    assert flash.page_in(0.0, other) == pytest.approx(reading_s + 2 * LATENCY_S + 1e-3 + 1e-3 + 62 * FAULT_S)
    assert flash.restore(1.0, 10**6) == pytest.approx(LATENCY_S + 1e-3)


def test_rows_of_an_embedding_are_read_one_by_one() -> None:
    cache = PageCache(10**9)
    rows = FileRead("embed", 10 * 500, 100 * 512 * KIB, pieces=10)
    seconds = _flash(cache=cache).page_in(0.0, rows)
    assert seconds == pytest.approx(10 * (LATENCY_S + 32 * KIB / RATE + FAULT_S))
    assert cache.held_bytes == 10 * 32 * KIB
    assert _flash(cache=cache).page_in(0.0, rows) == pytest.approx(10 * FAULT_S)
    small = FileRead("embed", 500, 40 * KIB, pieces=10)
    assert _flash().page_in(0.0, small) == pytest.approx(LATENCY_S + 32 * KIB / RATE + 3 * FAULT_S)
