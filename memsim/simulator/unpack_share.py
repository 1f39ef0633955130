"""What turning INT4 weights into floats takes of a step: its share of forward, backward and the whole."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.results import Band
from memsim.simulator.device import CORNERS, Device
from memsim.simulator.simulate import simulate
from memsim.simulator.trace import trace_program

Way = Literal["fused", "naive"]
"""``fused``: products that unpack tile by tile inside. ``naive``: a block's matrices are unpacked to f32 beforehand."""

HERE: Final = "here"
"""Where something was measured; anything else is a device's name."""

PARTS: Final = ("forward", "backward", "step")
_BACKWARD = ("recompute", "backward")


@dataclass(frozen=True, slots=True)
class UnpackShare:
    """The share of unpacking at one sequence length.

    Attributes:
        schedule: Which step was measured or simulated.
        compute: Element type of the products; empty on a device, whose rates do not tell.
        where: ``here`` if it was measured, else the device.
        share: Of ``forward``, ``backward`` (with its recompute) and ``step`` (with its update), from 0 to 1. Measured:
            lowest, median and highest step; simulated: the band of the device.
        step_s: Seconds of the step.
    """

    seq_len: int
    way: Way
    schedule: str
    compute: str
    where: str
    share: dict[str, Band]
    step_s: Band

    @property
    def label(self) -> str:
        """What people call its curve."""
        kernels = "this runtime's kernels" if self.way == "fused" else "unpack everything"
        return f"{kernels}, {'measured ' if self.where == HERE else ''}{self.where}"


def shares(nodes: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Return the share of unpacking of each of ``PARTS``.

    Args:
        nodes: Phase, seconds in all, and seconds of unpacking of each node of a step.
    """
    total: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    unpacking = dict(total)
    for phase, seconds, unpack_s in nodes:
        for part in ("step", "backward" if phase in _BACKWARD else phase):
            if part in total:
                total[part] += seconds
                unpacking[part] += unpack_s
    return {part: unpacking[part] / total[part] if total[part] else 0.0 for part in PARTS}


def band(values: Mapping[str, float]) -> Band:
    """Return the band of what a device's corners say."""
    return Band(min(values.values()), values["nominal"], max(values.values()))


def simulated_share(setup: TrainingSetup, way: Way, device: Device) -> UnpackShare:
    """Simulate a warm step of ``setup`` on a cool device, and return the share of unpacking."""
    plan = plan_run(setup, "")
    simulation = simulate(trace_program(plan.train.program, plan.memory), device, n_steps=1)
    steps = {corner: simulation.corners[corner].warm for corner in CORNERS}
    found = {
        corner: shares((at.node.phase, at.split.total_s, at.split.unpack_s) for at in step.timeline)
        for corner, step in steps.items()
    }
    return UnpackShare(
        seq_len=setup.n_tokens,
        way=way,
        schedule=setup.schedule,
        compute="",
        where=device.name,
        share={part: band({corner: found[corner][part] for corner in CORNERS}) for part in PARTS},
        step_s=band({corner: step.split.total_s for corner, step in steps.items()}),
    )
