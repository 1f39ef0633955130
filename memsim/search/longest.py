"""The longest sequence with which a step fits a budget."""

from dataclasses import replace

from memsim.models.parts import block_part
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.schedules.choices import tiled
from memsim.search.needs import Needs
from memsim.search.probe import shortened
from memsim.search.space import mlp_tiles

_FEW = 3
_MARGIN = 128
"""A length that does not quite fit is shortened by one part in so many."""


def longest_sequence(setup: TrainingSetup, needs: Needs, budget_bytes: int) -> int:
    """Return the most tokens, up to the model's positions, with which the smallest schedule fits; 0 if none do.

    Looked for with a model of a few blocks, each of which holds what it holds whatever stands beside it; the result is
    then held to the whole model.
    """
    n_blocks = setup.config.num_hidden_layers
    few = shortened(setup.graph(), [0, *([min(1, n_blocks - 1)] * (_FEW - 1))]).config
    low, high = 0, setup.config.longest_sequence
    if _need(replace(setup, config=few, n_tokens=high), needs, n_blocks)[0] <= budget_bytes:
        low = high
    while high - low > 1:
        middle = (low + high) // 2
        fits = _need(replace(setup, config=few, n_tokens=middle), needs, n_blocks)[0] <= budget_bytes
        low, high = (middle, high) if fits else (low, middle)
    while low:
        _, tile = _need(replace(setup, config=few, n_tokens=low), needs, n_blocks)
        if _total(replace(setup, n_tokens=low), needs, n_blocks, tile) <= budget_bytes:
            break
        low -= -(-low // _MARGIN)
    return low


def _need(setup: TrainingSetup, needs: Needs, n_blocks: int) -> tuple[int, int | None]:
    """Return the smallest budget for a step, were there ``n_blocks``, and the token tile of the MLP with which."""
    return min(
        ((_total(setup, needs, n_blocks, tile), tile) for tile in mlp_tiles(setup.n_tokens)[-2:]),
        key=lambda found: found[0],
    )


def _total(setup: TrainingSetup, needs: Needs, n_blocks: int, tile: int | None) -> int:
    """Return what the smallest schedule with this tile needs; missing blocks have the nodes of the second one."""
    have = setup.config.num_hidden_layers
    plan = plan_run(replace(setup, choices=replace(tiled(have, ()), mlp_tile=tile)), "")
    each = sum(node.part == block_part(min(1, have - 1)) for node in plan.program.nodes)
    n_nodes = plan.n_nodes + (n_blocks - have) * each
    return needs.total(plan.memory.peak_bytes, plan.memory.file_floor_bytes, n_nodes)
