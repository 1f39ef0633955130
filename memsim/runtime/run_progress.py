"""What draws a run: callbacks, and what they are told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memsim.progress_types import BytesProgress, StageProgress
from memsim.results import StepResult

if TYPE_CHECKING:
    from memsim.runtime.config import RunConfig
    from memsim.runtime.outcome import RunOutcome


@dataclass(frozen=True, slots=True)
class StepDone:
    """One finished step, for drawing.

    Attributes:
        step: From 1.
        footprint_bytes: The highest footprint so far.
        rho: Projected gradients of a zeroth-order step.
    """

    step: int
    result: StepResult
    footprint_bytes: int
    rho: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeDone:
    """One finished node, for drawing.

    Attributes:
        step: From 1.
        position: Nodes of this step that are done, out of ``n_nodes``.
        node: Its op, part and phase.
    """

    step: int
    position: int
    n_nodes: int
    node: str
    footprint_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """Callbacks that draw a run; every one may do nothing.

    Attributes:
        stage: A part of the preparation begins.
        packing: (label, bytes done, bytes in all) while weights are written.
        planned: The plan is made: (planned footprint in bytes, weights' source).
        node: A node is done; called at most ten times a second.
        step: A step is done.
        note: A line worth reading.
        unheard: Returns why something of this could not be shown, or None.
    """

    stage: StageProgress = lambda text: None
    packing: BytesProgress = lambda label, done, total: None
    planned: Callable[[int, str], None] = lambda footprint_bytes, source: None
    node: Callable[[NodeDone], None] = lambda node: None
    step: Callable[[StepDone], None] = lambda step: None
    note: StageProgress = lambda text: None
    unheard: Callable[[], str | None] = lambda: None


FINISHED: "list[Callable[[RunConfig, RunOutcome], None]]" = []
"""Called with every run of this process that ended with a record: how the pytest plugin sees the runs of a test."""
