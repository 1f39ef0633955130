"""The fastest mixtures of ways to treat blocks, for every amount of memory at once.

While block i runs, the arena holds what all blocks below it keep, and what it holds itself. Seen from the last block
backwards, what the blocks from i on need is ::

    need(i) = max(local(i), kept(i) + need(i + 1)),    need(L) = what the head needs

so the less a rest needs and the sooner it ends, the better it is whatever comes before it: dynamic programming over
(bytes, time) pairs, of which only those stay that no other beats, finds every optimal mixture, and in which order its
blocks stand (those that keep least come first: what they keep lives longest). Blocks of a kind have the same ways, but
no use is made of that: 48 blocks take well under a second.

More than ``MAX_PAIRS`` pairs are thinned on a grid of bytes. A pair that is dropped has a faster one that needs less
than a grid step more, so the result for a budget is at least as fast as the optimum for the budget less ``L`` steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memsim.search.probe import BlockCost, FrameCost

MAX_PAIRS = 20_000

_CELLS = 4096

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Front:
    """Optimal mixtures, from the smallest to the fastest.

    Attributes:
        arena_bytes: Live arena bytes at the worst node of each mixture.
        time_ps: Picoseconds of its step.
        n_nodes: Its nodes.
        slack_bytes: No mixture that needs this much less is faster; 0 when nothing was thinned.
    """

    arena_bytes: Integers
    time_ps: Integers
    n_nodes: Integers
    slack_bytes: int
    _ways: tuple[Integers, ...]
    _rests: tuple[Integers, ...]

    def mixture(self, index: int) -> tuple[list[int], int]:
        """Return how mixture ``index`` treats each block, first to last, and which frame it has, as numbers."""
        found = []
        for ways, rests in zip(self._ways, self._rests, strict=True):
            found.append(int(ways[index]))
            index = int(rests[index])
        return found, index


def optimal_mixtures(
    blocks: Sequence[Sequence[BlockCost]], frames: Sequence[FrameCost], max_pairs: int = MAX_PAIRS
) -> Front:
    """Return the optimal mixtures of a step.

    Args:
        blocks: For each block, first to last, what each way to treat it costs; at least one way.
        frames: The step around them, in one or more ways that differ in the head.
        max_pairs: Thin beyond so many.
    """
    heads = np.array([(frame.head_bytes, frame.time_ps, frame.n_nodes) for frame in frames], np.int64)
    need, time_ps, nodes = heads[:, 0], heads[:, 1], heads[:, 2]
    ways, rests = [], []
    slack = 0
    for costs in reversed(blocks):
        kept, local, own_ps, own_nodes = _columns(costs)
        way, rest = np.divmod(np.arange(len(costs) * len(need)), len(need))
        all_need = np.maximum(local[way], kept[way] + need[rest])
        all_ps, all_nodes = own_ps[way] + time_ps[rest], own_nodes[way] + nodes[rest]
        best = _unbeaten(all_need, all_ps, all_nodes)
        if len(best) > max_pairs:
            step = -(-int(all_need[best[-1]] - all_need[best[0]]) // max_pairs)
            fastest = _last_of_each(all_need[best] // step)
            best = best[np.union1d([0], fastest)]  # the smallest stays: a tight budget may have no other
            slack += step
        need, time_ps, nodes = all_need[best], all_ps[best], all_nodes[best]
        ways.append(way[best])
        rests.append(rest[best])
    arena = np.maximum(need + frames[0].base_bytes, max(frame.other_bytes for frame in frames))
    return Front(arena, time_ps, nodes, slack, tuple(reversed(ways)), tuple(reversed(rests)))


def least_mixtures(
    blocks: Sequence[Sequence[BlockCost]], frames: Sequence[FrameCost], node_bytes: int, max_pairs: int = MAX_PAIRS
) -> Front:
    """Return a front that no mixture lies below, where each node takes ``node_bytes`` beside the arena.

    Its ``arena_bytes`` are those of arena and nodes together. They are exact for a mixture whose arena is fullest at
    its head. Where it is fullest earlier, what comes after that counts with the fewest nodes that it can have.

    Args:
        blocks: As for `optimal_mixtures`.
        frames: The same.
        node_bytes: Bytes of a node.
        max_pairs: Thin beyond so many.
    """
    fewest = min(frame.n_nodes for frame in frames)
    ways: list[list[BlockCost]] = []
    for costs in reversed(blocks):
        ways.append(
            [
                replace(
                    cost,
                    kept_bytes=cost.kept_bytes + node_bytes * cost.n_nodes,
                    local_bytes=cost.local_bytes + node_bytes * (cost.n_nodes + fewest),
                )
                for cost in costs
            ]
        )
        fewest += min(cost.n_nodes for cost in costs)
    heads = [replace(frame, head_bytes=frame.head_bytes + node_bytes * frame.n_nodes) for frame in frames]
    return optimal_mixtures(ways[::-1], heads, max_pairs)


def _columns(costs: Sequence[BlockCost]) -> tuple[Integers, Integers, Integers, Integers]:
    rows = np.array([(c.kept_bytes, c.local_bytes, c.time_ps, c.n_nodes) for c in costs], np.int64)
    return rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]


def _unbeaten(need: Integers, time_ps: Integers, nodes: Integers) -> Integers:
    """Return the positions of the pairs that no other beats, from the smallest to the fastest."""
    maybe = _not_clearly_beaten(need, time_ps)
    order = maybe[np.lexsort((nodes[maybe], time_ps[maybe], need[maybe]))]
    sooner = np.minimum.accumulate(time_ps[order])
    better = np.concatenate(([True], time_ps[order][1:] < sooner[:-1]))
    return order[better]


def _not_clearly_beaten(need: Integers, time_ps: Integers) -> Integers:
    """Return the positions of the pairs that nothing in a lower cell of bytes beats: few are left to sort."""
    low = need.min()
    cells = (need - low) * _CELLS // (need.max() - low + 1)
    soonest = np.full(_CELLS, np.iinfo(np.int64).max)
    np.minimum.at(soonest, cells, time_ps)
    below = np.concatenate(([np.iinfo(np.int64).max], np.minimum.accumulate(soonest)[:-1]))
    return np.flatnonzero(time_ps < below[cells])


def _last_of_each(cells: Integers) -> Integers:
    """Return the position of the last, the fastest, of each run of equal ``cells``."""
    return np.flatnonzero(np.concatenate((cells[1:] != cells[:-1], [True])))
