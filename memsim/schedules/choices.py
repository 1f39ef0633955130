"""A schedule is a value: what each block keeps, spills or recomputes between its forward and its backward."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
        groups: Blocks take turns: block b is differentiated and updated in every ``groups``-th step, from step b on. In
            all others it passes the gradient on as if its Jacobian were the identity. None has no turns.
    """

    blocks: tuple[BlockChoices, ...]
    unpack: str
    head: str
    adapters: str
    update: str
    mlp_tile: int | None
    prefetch: bool
    state: str = "paged"
    groups: int | None = None


def backprop(n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Plain backpropagation: every residual of every block is kept."""
    return _as_published((BlockChoices(frozenset(residuals), frozenset()),) * n_blocks)


def mebp(n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Memory-efficient backpropagation as published (arXiv 2510.03425): only block inputs survive, on disk."""
    return _as_published((_INPUT_ON_DISK,) * n_blocks)


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


def mesp(n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """MeSP's lifetimes (arXiv 2602.13069): block inputs stay in memory, all else is recomputed by explicit backwards.

    Products read the packed matrices; gradients of all blocks are kept until the end. Attention's T x T matrix, which
    the published code holds, is not made here.
    """
    return Choices(
        blocks=(BlockChoices(frozenset({"x"}), frozenset()),) * n_blocks,
        unpack="tile",
        head="logits",
        adapters="pinned",
        update="end",
        mlp_tile=None,
        prefetch=False,
    )


LCSB_GROUPS = 4


def lcsb(n_blocks: int, residuals: tuple[str, ...], groups: int = LCSB_GROUPS) -> Choices:
    """LCSB (arXiv 2602.13073) on MeBP: in each step every ``groups``-th block is recomputed and differentiated.

    A block that is not selected is not updated either: its optimizer state waits.
    """
    return replace(mebp(n_blocks, residuals), groups=min(groups, n_blocks))


_INPUT_ON_DISK = BlockChoices(frozenset(), frozenset({"x"}))


def _as_published(blocks: tuple[BlockChoices, ...]) -> Choices:
    return Choices(
        blocks, unpack="block", head="logits", adapters="pinned", update="end", mlp_tile=None, prefetch=False
    )


SCHEDULES: dict[str, Callable[[int, tuple[str, ...]], Choices]] = {
    "mebp": mebp,
    "tiled": tiled,
    "backprop": backprop,
    "mesp": mesp,
    "lcsb": lcsb,
}


def choices_for(schedule: str, n_blocks: int, residuals: tuple[str, ...]) -> Choices:
    """Return the choices of a named schedule.

    Raises:
        UsageError: No such schedule.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"no schedule called {schedule!r}; schedules: {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule](n_blocks, residuals)
