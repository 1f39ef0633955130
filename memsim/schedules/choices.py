"""A schedule is a value: what each block keeps, spills or recomputes between its forward and its backward."""

from collections.abc import Callable
from dataclasses import dataclass

from memsim.errors import UsageError


@dataclass(frozen=True, slots=True)
class BlockChoices:
    """What becomes of a block's residuals (forward values that its backward reads, the block input included).

    Attributes:
        keep: Residuals that stay in the arena from the forward to the backward.
        spill: Residuals written to the scratch file and restored before the backward.

    A residual that is in neither is recomputed.
    """

    keep: frozenset[str]
    spill: frozenset[str]


@dataclass(frozen=True, slots=True)
class Choices:
    """A schedule of a whole step.

    Attributes:
        blocks: One entry a transformer block.
        unpack: ``block`` unpacks a block's matrices to f32 when it is paged in and frees them when it is evicted;
            ``tile`` unpacks inside each product.
    """

    blocks: tuple[BlockChoices, ...]
    unpack: str


def backprop(n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Plain backpropagation: every residual of every block is kept."""
    return Choices((BlockChoices(frozenset(residuals), frozenset()),) * n_blocks, unpack="block")


def mebp(n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Memory-efficient backpropagation as published (arXiv 2510.03425): only block inputs survive, on disk."""
    return Choices((BlockChoices(frozenset(), frozenset({"x"})),) * n_blocks, unpack="block")


SCHEDULES: dict[str, Callable[[int, tuple[str, ...]], Choices]] = {"mebp": mebp, "backprop": backprop}


def choices_for(schedule: str, n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Return the choices of a named schedule.

    Raises:
        UsageError: No such schedule.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"no schedule called {schedule!r}; schedules: {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule](n_blocks, residuals)
