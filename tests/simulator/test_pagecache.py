from hypothesis import given
from hypothesis import strategies as st

from memsim.simulator.pagecache import PageCache


@given(
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), max_size=40),
    st.integers(0, 40),
)
def test_like_a_list_in_order_of_use(capacity: int, touches: list[tuple[int, int]], later: int) -> None:
    cache = PageCache(capacity)
    model: list[list[int]] = []  # [key, bytes], least recently used first

    def shrink(limit: int) -> None:
        while sum(size for _, size in model) > limit:
            model.pop(0)

    for position, (key, size) in enumerate(touches):
        if position == len(touches) // 2:
            cache.resize(later)
            shrink(later)
        limit = capacity if position < len(touches) // 2 else later
        held = next((n for k, n in model if k == key), 0)
        model = [[k, n] for k, n in model if k != key] + [[key, max(held, size)]]
        assert cache.missing([(("file", key), size)]) == ([size - held] if size > held else [])
        shrink(limit)
        assert cache.held_bytes == sum(n for _, n in model) <= limit


def test_a_loop_over_more_than_fits_never_hits() -> None:
    cache = PageCache(3)
    clusters = [(("file", number), 1) for number in range(4)]
    for _ in range(3):
        assert cache.missing(clusters) == [1] * 4
    assert cache.missing(clusters[-3:]) == []


def test_a_dropped_file_is_read_again_and_no_other() -> None:
    cache = PageCache(10)
    files = {name: [((name, number), 2) for number in range(2)] for name in "ab"}
    for clusters in files.values():
        assert cache.missing(clusters) == [2, 2]
    cache.drop("a")
    assert cache.held_bytes == 4
    assert cache.missing(files["b"]) == []
    assert cache.missing(files["a"]) == [2, 2]
