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

    A residual that is in neither is recomputed: from what is kept or restored, the block input in the end.
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
        head: ``logits`` holds all logits and turns them into their gradient; ``one_pass`` streams the vocabulary once
            for loss, accuracy and gradient, without logits.
        adapters: ``pinned`` holds adapters all step; ``paged`` reads each block's from the scratch file when needed.
        update: ``end`` keeps all gradients until the step's end; ``block`` updates each block right after its
            backward. Micro-batches are summed first, so with several of them it is always the end.
        mlp_tile: Tokens of the MLP that are in memory at once; None is all. A block that keeps or spills a residual of
            its MLP runs it whole all the same.
        prefetch: Ask for the next block's pages while this one computes.
        state: ``paged`` reads and writes each block's optimizer state on the scratch file; ``pinned`` holds it all
            step.
    """

    blocks: tuple[BlockChoices, ...]
    unpack: str
    head: str
    adapters: str
    update: str
    mlp_tile: int | None
    prefetch: bool
    state: str = "paged"


def backprop(n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Plain backpropagation: every residual of every block is kept."""
    return _as_published((BlockChoices(frozenset(residuals), frozenset()),) * n_blocks)


def mebp(n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Memory-efficient backpropagation as published (arXiv 2510.03425): only block inputs survive, on disk."""
    return _as_published((_INPUT_ON_DISK,) * n_blocks)


def mesp(n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Structured backpropagation as published (arXiv 2602.13069): block inputs stay in memory, each block recomputed.

    What it recomputes inside its products, x A^T of every adapter and the SiLU of the gate, is never kept here.
    """
    return _as_published((BlockChoices(frozenset({"x"}), frozenset()),) * n_blocks)


def tiled(n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """MeBP with nothing in memory that need not be: this project's smallest footprint."""
    return Choices(
        blocks=(_INPUT_ON_DISK,) * n_blocks,
        unpack="tile",
        head="one_pass",
        adapters="paged",
        update="block",
        mlp_tile=128,
        prefetch=True,
    )


_INPUT_ON_DISK = BlockChoices(frozenset(), frozenset({"x"}))


def _as_published(blocks: tuple[BlockChoices, ...]) -> Choices:
    return Choices(
        blocks, unpack="block", head="logits", adapters="pinned", update="end", mlp_tile=None, prefetch=False
    )


SCHEDULES: dict[str, Callable[[int, tuple[str, ...]], Choices]] = {
    "mebp": mebp,
    "mesp": mesp,
    "tiled": tiled,
    "backprop": backprop,
}


def choices_for(schedule: str, n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Return the choices of a named schedule.

    Raises:
        UsageError: No such schedule.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"no schedule called {schedule!r}; schedules: {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule](n_blocks, residuals)
