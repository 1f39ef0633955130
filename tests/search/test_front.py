"""The optimal mixtures against every mixture there is."""

from dataclasses import replace
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.search.front import least_mixtures, optimal_mixtures
from memsim.search.probe import BlockCost, FrameCost


def _frame(head_bytes: int = 7, time_ps: int = 3) -> FrameCost:
    return FrameCost(5, 6, head_bytes, time_ps, n_nodes=2, pinned_bytes=0, together_bytes=0)


def _cost(kept: int, extra: int, time_ps: int) -> BlockCost:
    return BlockCost(kept, kept + extra, time_ps, n_nodes=1, pinned_bytes=0, restored=())


COSTS = st.builds(_cost, st.integers(0, 30), st.integers(0, 40), st.integers(1, 50))
BLOCKS = st.lists(st.lists(COSTS, min_size=1, max_size=4), min_size=1, max_size=4)


def _peak_and_time(costs: tuple[BlockCost, ...], frame: FrameCost) -> tuple[int, int]:
    """Walk a step forward: the most that is held at once, and the time."""
    held = peak = 0
    for cost in costs:
        peak = max(peak, held + cost.local_bytes)
        held += cost.kept_bytes
    peak = max(peak, held + frame.head_bytes)
    return max(peak + frame.base_bytes, frame.other_bytes), frame.time_ps + sum(cost.time_ps for cost in costs)


@settings(deadline=None, max_examples=60)
@given(BLOCKS, st.integers(0, 60), st.integers(0, 60))
def test_the_front_is_that_of_all_mixtures(blocks: list[list[BlockCost]], head_bytes: int, more_ps: int) -> None:
    frames = [_frame(head_bytes), _frame(head_bytes // 2, 3 + more_ps)]
    front = optimal_mixtures(blocks, frames)
    everything = [_peak_and_time(costs, frame) for costs in product(*blocks) for frame in frames]
    for arena, ps in everything:
        fitting = front.time_ps[front.arena_bytes <= arena]
        assert fitting.min() <= ps
    for index, (arena, ps) in enumerate(zip(front.arena_bytes, front.time_ps, strict=True)):
        ways, head = front.mixture(index)
        costs = tuple(row[way] for row, way in zip(blocks, ways, strict=True))
        assert _peak_and_time(costs, frames[head]) == (arena, ps)
    assert front.slack_bytes == 0


@settings(deadline=None, max_examples=40)
@given(st.lists(COSTS, min_size=2, max_size=5), st.integers(2, 12), st.integers(2, 6))
def test_what_thinning_loses_is_bounded(ways: list[BlockCost], n_blocks: int, max_pairs: int) -> None:
    whole = optimal_mixtures([ways] * n_blocks, [_frame()])
    thin = optimal_mixtures([ways] * n_blocks, [_frame()], max_pairs)
    assert thin.arena_bytes[0] == whole.arena_bytes[0]
    for arena, ps in zip(whole.arena_bytes, whole.time_ps, strict=True):
        assert thin.time_ps[thin.arena_bytes <= arena + thin.slack_bytes].min() <= ps


@settings(deadline=None, max_examples=60)
@given(st.data(), BLOCKS, st.integers(0, 60), st.integers(0, 9))
def test_no_mixture_lies_below_the_least(
    data: st.DataObject, blocks: list[list[BlockCost]], head_bytes: int, node_bytes: int
) -> None:
    blocks = [[replace(cost, n_nodes=data.draw(st.integers(1, 12))) for cost in costs] for costs in blocks]
    frames = [_frame(head_bytes), replace(_frame(head_bytes // 2, 9), n_nodes=5)]
    least = least_mixtures(blocks, frames, node_bytes)
    for costs in product(*blocks):
        for frame in frames:
            arena, ps = _peak_and_time(costs, frame)
            n_nodes = frame.n_nodes + sum(cost.n_nodes for cost in costs)
            assert least.time_ps[least.arena_bytes <= arena + node_bytes * n_nodes].min() <= ps
    # Without this a front of zeros would do: where the arena is fullest at the head, the least is what there is.
    full = least_mixtures(blocks, [replace(frames[0], head_bytes=1000)], node_bytes)
    everything = [(*_peak_and_time(c, replace(frames[0], head_bytes=1000)), c) for c in product(*blocks)]
    assert full.arena_bytes[0] == min(
        arena + node_bytes * (2 + sum(k.n_nodes for k in c)) for arena, _, c in everything
    )


def test_blocks_that_keep_least_come_first() -> None:
    """What an early block keeps lives through all that follow: a forward order by hand."""
    recompute, keep = _cost(0, 20, 10), _cost(15, 5, 1)
    front = optimal_mixtures([[recompute, keep]] * 3, [_frame(head_bytes=0)])
    found = {int(front.time_ps[i]): (front.mixture(i)[0], int(front.arena_bytes[i])) for i in range(len(front.time_ps))}
    assert found[3 + 10 + 10 + 1] == ([0, 0, 1], 20 + 5)
    assert found[3 + 10 + 1 + 1] == ([0, 1, 1], 15 + 20 + 5)
