"""All schedules that are looked at, as mixtures of ways to treat a block under a few choices for the whole step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from memsim.models.graph import BlockKind, ModelGraph
from memsim.models.parts import block_part, part_tensors
from memsim.progress_types import CountProgress
from memsim.schedules.choices import BlockChoices, Choices
from memsim.schedules.optimizers import OptimizerConfig
from memsim.search.front import Front, optimal_mixtures
from memsim.search.keep_sets import MAX_SETS, keep_sets
from memsim.search.probe import BlockCost, FrameCost, Probe, Traced, probe, shortened
from memsim.simulator.device import Numbers, Rule

_TILES = (2, 4, 8)
"""Into how many the MLP's tokens are divided. More cost more in nodes, each a Python object under the cap, than they
save: with an eighth of its tokens an MLP holds less than the attention before it."""

_TILE_STEP = 32
_TILED = 128
"""What the schedule ``tiled`` takes, whose place this is up to ``_TILED_TOKENS``."""
_TILED_TOKENS = 2048

ADAPTERS = ("paged", "pinned")

Key = tuple[int, BlockKind]
"""Whether a block is the first one (0) or not (1), and its kind."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of the space is looked at; less of it in tests.

    Attributes:
        max_sets: Ways to treat a block.
        tiles: Token tiles of the MLP; None chooses them by the sequence length.
        heads: Ways of the head.
    """

    max_sets: int = MAX_SETS
    tiles: tuple[int | None, ...] | None = None
    heads: tuple[str, ...] = ("one_pass", "logits")


@dataclass(frozen=True, slots=True)
class Region:
    """The mixtures under one set of choices for the whole step.

    Attributes:
        whole: Those choices; its blocks say nothing.
        front: The optimal mixtures.
        heads: The head of each frame.
        sets: By kind of block, what the ways are.
        costs: By block, what each of its ways costs.
        frames: What is around the blocks, with each head.
        pinned_bytes: Held all step.
        extra_ps: Picoseconds to add to the front's.
    """

    whole: Choices
    front: Front
    heads: tuple[str, ...]
    sets: tuple[Sequence[BlockChoices], ...]
    costs: tuple[Sequence[BlockCost], ...]
    frames: tuple[FrameCost, ...]
    pinned_bytes: int
    extra_ps: int

    def choices(self, index: int) -> Choices:
        """Return mixture ``index`` as a schedule."""
        ways, frame = self.front.mixture(index)
        blocks = tuple(sets[way] for sets, way in zip(self.sets, ways, strict=True))
        return replace(self.whole, blocks=blocks, head=self.heads[frame])

    def restored(self, index: int) -> list[tuple[int, ...]]:
        """Return what each block of mixture ``index`` reads back from the scratch file, first to last."""
        ways, _ = self.front.mixture(index)
        return [costs[way].restored for costs, way in zip(self.costs, ways, strict=True)]


def regions(
    graph: ModelGraph,
    optimizer: OptimizerConfig,
    numbers: Numbers,
    rule: Rule,
    unpacks: Sequence[str],
    bounds: Bounds,
    progress: CountProgress = lambda done, total: None,
) -> Iterator[Region]:
    """Yield the optimal mixtures under every choice for the whole step.

    Args:
        graph: The model.
        optimizer: Decides how much state there is.
        numbers: The device's rates.
        rule: What it counts.
        unpacks: Values of ``Choices.unpack`` to look at.
        bounds: How much to look at.
        progress: Called with (done, total) before each token tile of each choice for the whole step, and at the end.
    """
    n_blocks = graph.config.num_hidden_layers
    # The first block of a kind, if there is one that is not the model's first: that one is a case of its own.
    kinds = {graph.kind(index): index for index in (0, *reversed(range(1, n_blocks)))}
    sets = {kind: keep_sets(graph, index, numbers, bounds.max_sets) for kind, index in kinds.items()}
    types = [graph.kind(index) for index in range(n_blocks)]
    has_state = optimizer.state_size(1) > 0
    tiles = bounds.tiles or mlp_tiles(graph.n_tokens)
    for number, (unpack, adapters) in enumerate(product(unpacks, ADAPTERS)):
        whole = Choices((), unpack, bounds.heads[0], adapters, "block", None, prefetch=True)
        prober = _Prober(graph, optimizer, numbers, rule, whole)
        frames = [prober.frame(kinds, head) for head in bounds.heads]
        state_ps, state_bytes = prober.pinning_state(kinds) if has_state else (0, 0)
        known: dict[tuple[Key, BlockChoices], BlockCost] = {}
        for done, tile in enumerate(tiles):
            progress(number * len(tiles) + done, len(unpacks) * len(ADAPTERS) * len(tiles))
            costs = {key: prober.block_costs(key, kinds, sets[key[1]], tile, known) for key in _keys(types)}
            keys = [(min(index, 1), kind) for index, kind in enumerate(types)]
            front = optimal_mixtures([costs[key] for key in keys], frames)
            pinned = frames[0].pinned_bytes + sum(costs[key][0].pinned_bytes for key in keys)
            each = tuple(sets[kind] for kind in types)
            own = tuple(costs[key] for key in keys)
            tiled = replace(whole, mlp_tile=tile)
            region = Region(tiled, front, bounds.heads, each, own, tuple(frames), pinned, 0)
            yield region
            if has_state:
                held = replace(tiled, state="pinned")
                yield replace(region, whole=held, pinned_bytes=pinned + state_bytes, extra_ps=state_ps)
    progress(1, 1)


def mlp_tiles(n_tokens: int) -> tuple[int | None, ...]:
    """Return the token tiles of the MLP that are looked at."""
    tiles = {-(-n_tokens // (count * _TILE_STEP)) * _TILE_STEP for count in _TILES}
    if n_tokens <= _TILED_TOKENS:
        tiles.add(_TILED)
    return (None, *sorted((tile for tile in tiles if tile < n_tokens), reverse=True))


def _keys(types: Sequence[BlockKind]) -> dict[Key, None]:
    return dict.fromkeys((min(index, 1), kind) for index, kind in enumerate(types))


class _Prober:
    """Lowers small models under choices for the whole step.

    What a block costs does not depend on what others save, so those that only stand beside it keep everything: their
    programs are the shortest. Nor does what is around the blocks depend on the tiles of their MLP.
    """

    def __init__(
        self, graph: ModelGraph, optimizer: OptimizerConfig, numbers: Numbers, rule: Rule, whole: Choices
    ) -> None:
        self._graph, self._optimizer, self._numbers, self._rule, self._whole = graph, optimizer, numbers, rule, whole
        self._traced: Traced = {}
        self._beside = BlockChoices(frozenset(graph.residuals), frozenset())

    def block_costs(
        self,
        key: Key,
        kinds: dict[BlockKind, int],
        sets: Sequence[BlockChoices],
        tile: int | None,
        known: dict[tuple[Key, BlockChoices], BlockCost],
    ) -> list[BlockCost]:
        """Return what each of ``sets`` costs in a block of one key; ``known`` are those that no tile changes."""
        index, new = kinds[key[1]], [chosen for chosen in sets if (key, chosen) not in known]
        if key[0]:  # any number of them stand side by side; the last block's own cost is the frame's
            graph = shortened(self._graph, [index] * (len(new) + 2))
            found = list(self._probe(graph, (self._beside, *new, self._beside), mlp_tile=tile).blocks[1:-1])
        else:
            graph = shortened(self._graph, [index] * 2)
            found = [self._probe(graph, (chosen, self._beside), mlp_tile=tile).blocks[0] for chosen in new]
        costs = dict(zip(new, found, strict=True))
        inside = {name for node in self._graph.mlp().forward.nodes for name in node.outputs}
        if not self._graph.goes_back(block_part(index)):
            inside = set()  # nothing is saved, so tiles there are
        known |= {(key, chosen): cost for chosen, cost in costs.items() if (chosen.keep | chosen.spill) & inside}
        return [costs[chosen] if chosen in costs else known[key, chosen] for chosen in sets]

    def frame(self, kinds: dict[BlockKind, int], head: str) -> FrameCost:
        """Return what is around the blocks, the last block's own nodes (it asks for the head's pages) among it."""
        index = next(iter(kinds.values()))
        two, found = (self._few(index, count, head=head) for count in (2, 3))
        middle, last = found.blocks[1:]
        more = self._graph.config.num_hidden_layers - 3  # summed gradients: as many as there are blocks
        return replace(
            found.frame,
            base_bytes=found.frame.base_bytes + more * (found.frame.base_bytes - two.frame.base_bytes),
            other_bytes=found.frame.other_bytes + more * (found.frame.other_bytes - two.frame.other_bytes),
            time_ps=found.frame.time_ps + last.time_ps - middle.time_ps,
            n_nodes=found.frame.n_nodes + last.n_nodes - middle.n_nodes,
            together_bytes=max(found.frame.together_bytes, *(self._block_bytes(own) for own in kinds.values())),
        )

    def _block_bytes(self, index: int) -> int:
        specs = part_tensors(self._graph.config, block_part(index), self._graph.formats)
        return sum(spec.n_bytes for spec in specs.values())

    def pinning_state(self, kinds: dict[BlockKind, int]) -> tuple[int, int]:
        """Return what optimizer state costs more if it is pinned: (picoseconds, bytes) of the whole step."""
        index = next(iter(kinds.values()))
        paged, pinned = (self._few(index, 3, state=state) for state in ("paged", "pinned"))
        block, other = pinned.blocks[1], paged.blocks[1]
        n_blocks = self._graph.config.num_hidden_layers
        ps = n_blocks * (block.time_ps - other.time_ps) + pinned.frame.time_ps - paged.frame.time_ps
        more = n_blocks * (block.pinned_bytes - other.pinned_bytes)
        return ps, more + pinned.frame.pinned_bytes - paged.frame.pinned_bytes

    def _few(self, index: int, count: int, **changes: Any) -> Probe:
        """Return a model of a few blocks that all keep everything."""
        return self._probe(shortened(self._graph, [index] * count), (self._beside,) * count, **changes)

    def _probe(self, graph: ModelGraph, blocks: tuple[BlockChoices, ...], **changes: Any) -> Probe:
        choices = replace(self._whole, blocks=blocks, **changes)
        return probe(graph, choices, self._optimizer, self._numbers, self._rule, self._traced)
