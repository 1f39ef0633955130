"""What each part of the model costs in a run: seconds by phase, and the most memory while it is at work."""

from collections.abc import Mapping
from dataclasses import dataclass

from memsim.reports.run_files import RunFiles

PHASES = ("forward", "recompute", "backward", "update")
BETWEEN = "step"
"""The name of what belongs to no part: the batch."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A part of the model: embedding, a block or the head.

    Attributes:
        seconds: By phase, in the median step.
        peak_footprint_bytes: Highest reading after one of its nodes, in any step; None if there was none.
        planned_bytes: Most bytes live at one of its nodes: arena, pinned, staging.
    """

    part: str
    seconds: Mapping[str, float]
    peak_footprint_bytes: int | None
    planned_bytes: int

    @property
    def total_s(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())


def layer_rows(run: RunFiles) -> list[LayerRow]:
    """Return the parts that were executed, in the order of the model: embedding, blocks, head.

    Raises:
        InputError: The events are damaged.
    """
    timed = run.timed_step
    seconds: dict[str, dict[str, float]] = {}
    peaks: dict[str, int] = {}
    planned: dict[str, int] = {}
    for event in run.events():
        node = run.program.nodes[event.node]
        part = node.part or BETWEEN
        by_phase = seconds.setdefault(part, dict.fromkeys(PHASES, 0.0))
        if event.step == timed:
            by_phase[node.phase] = by_phase.get(node.phase, 0.0) + event.seconds
        peaks[part] = max(peaks.get(part, 0), event.footprint_bytes or 0)
        planned[part] = max(planned.get(part, 0), int(run.plan.live_bytes[event.node]))
    return [LayerRow(part, seconds[part], peaks[part] or None, planned[part]) for part in sorted(seconds, key=_order)]


def _order(part: str) -> tuple[int, str]:
    return {"embed": 0, "head": 2, BETWEEN: 3}.get(part, 1), part
