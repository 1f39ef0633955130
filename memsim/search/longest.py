"""The longest sequence with which a step fits a budget."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from memsim.models.parts import block_part
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.schedules.choices import tiled
from memsim.search.needs import Needs
from memsim.search.probe import shortened
from memsim.search.space import mlp_tiles

_FEW = 3
_MARGIN = 128
"""A length that does not quite fit is shortened by one part in so many."""


def longest_sequence(setup: TrainingSetup, needs: Needs, budget_bytes: int, smallest: str = "") -> int:
    """Return the most tokens, up to the model's positions, with which the smallest schedule fits; 0 if none do.

    Looked for with a model of a few blocks, each of which holds what it holds whatever stands beside it; the result is
    then held to the whole model.

    Args:
        setup: What is planned.
        needs: How budgets are counted.
        budget_bytes: The budget.
        smallest: A named schedule to look at too, whole: one that needs least where nodes are what costs.
    """
    n_blocks = setup.config.num_hidden_layers
    few = shortened(setup.graph(), [0, *([min(1, n_blocks - 1)] * (_FEW - 1))]).config
    low, high = 0, setup.config.longest_sequence
    need = _Needed(replace(setup, config=few), needs, n_blocks)
    low = high if need(high) <= budget_bytes else _last_that_fits(need, budget_bytes, high)
    while low:
        if _total(replace(setup, n_tokens=low), needs, n_blocks, need.tile(low)) <= budget_bytes:
            break
        low -= -(-low // _MARGIN)
    return max(low, _longest_of(smallest, setup, needs, budget_bytes)) if smallest else low


def _longest_of(schedule: str, setup: TrainingSetup, needs: Needs, budget_bytes: int) -> int:
    @cache
    def need(n_tokens: int) -> int:
        plan = plan_run(replace(setup, schedule=schedule, choices=None, n_tokens=n_tokens), "")
        return needs.total(plan.memory.peak_bytes, plan.memory.file_floor_bytes, plan.n_nodes)

    high = setup.config.longest_sequence
    return high if need(high) <= budget_bytes else _last_that_fits(need, budget_bytes, high)


class _Needed:
    """The smallest budget for a step of so many tokens, were there ``n_blocks``."""

    def __init__(self, setup: TrainingSetup, needs: Needs, n_blocks: int) -> None:
        self._setup, self._needs, self._n_blocks = setup, needs, n_blocks
        self._known: dict[int, tuple[int, int | None]] = {}

    def __call__(self, n_tokens: int) -> int:
        """Return it in bytes."""
        return self._least(n_tokens)[0]

    def tile(self, n_tokens: int) -> int | None:
        """Return the token tile of the MLP with which."""
        return self._least(n_tokens)[1]

    def _least(self, n_tokens: int) -> tuple[int, int | None]:
        if n_tokens not in self._known:
            setup = replace(self._setup, n_tokens=n_tokens)
            tiles = mlp_tiles(n_tokens)[-2:]
            each = ((_total(setup, self._needs, self._n_blocks, tile), tile) for tile in tiles)
            self._known[n_tokens] = min(each, key=lambda found: found[0])
        return self._known[n_tokens]


def _last_that_fits(need: Callable[[int], int], budget_bytes: int, high: int) -> int:
    """Return a number below ``high``, which does not fit, that fits where the next one does not; 0 if none fits.

    Bytes are almost a line of tokens: a guess is made on the line through what is known, and in the middle where two
    such guesses have moved the same end.
    """
    low = 1
    if need(low) > budget_bytes:
        return 0
    same = 0  # guesses in a row that fit, or with a minus that do not
    while high - low > 1:
        if abs(same) > 1:
            middle, same = (low + high) // 2, 0
        else:
            share = (budget_bytes - need(low)) / (need(high) - need(low))
            middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        fits = need(middle) <= budget_bytes
        low, high = (middle, high) if fits else (low, middle)
        same = max(same, 0) + 1 if fits else min(same, 0) - 1
    return low


def _total(setup: TrainingSetup, needs: Needs, n_blocks: int, tile: int | None) -> int:
    """Return what the smallest schedule with this tile needs; missing blocks have the nodes of the second one."""
    have = setup.config.num_hidden_layers
    plan = plan_run(replace(setup, choices=replace(tiled(have, ()), mlp_tile=tile)), "")
    each = sum(node.part == block_part(min(1, have - 1)) for node in plan.program.nodes)
    n_nodes = plan.n_nodes + (n_blocks - have) * each
    return needs.total(plan.memory.peak_bytes, plan.memory.file_floor_bytes, n_nodes)
