"""How a simulated run is told: the text that ``simulate`` and ``replay`` share."""

from collections.abc import Mapping, Sequence

from memsim.results import Band, Result
from memsim.schedules.choices import SCHEDULES
from memsim.simulator.modes import Mode
from memsim.simulator.simulate import Simulation, Survival
from memsim.units import format_bytes

Held = Sequence[tuple[str, int]]
"""Names of values and their bytes."""

_LARGER = tuple(name for name in SCHEDULES if name != "tiled")
"""Schedules that need more than ``tiled`` does."""


def killed(survival: Survival, held: Held, schedule: str, decimal: bool) -> str:
    """Say where the limit is broken, by how much, by what, and what to do.

    Args:
        survival: Of the mode in which the app runs.
        held: What is live at the node that breaks it, largest first.
        schedule: Of the run: what is advised is another one.
        decimal: Sizes in MB instead of MiB.
    """
    node = survival.killed_at
    if node is None:
        raise ValueError("the run survives")
    largest = ", ".join(f"{name} {format_bytes(n_bytes, decimal)}" for name, n_bytes in held[:3])
    over, limit = (format_bytes(n_bytes, decimal) for n_bytes in (-survival.margin_bytes, survival.limit.nominal))
    peak = format_bytes(survival.limit.nominal - survival.margin_bytes, decimal)
    advice = "Use --schedule tiled, shorten" if schedule in _LARGER else "Shorten"
    return (
        f"killed at node {node.index} ({node}) with {largest}; the peak is {over} over the {survival.mode} limit of "
        f"{limit}. {advice} --seq-len, or raise the limit to {peak}"
    )


def summary(
    result: Result, simulation: Simulation, mode: Mode, decimal: bool, peak_node: str, working_set: str
) -> list[str]:
    """Return a simulation for people, line by line.

    Args:
        result: Its record.
        simulation: What became of the run.
        mode: How the app runs.
        decimal: Sizes in MB instead of MiB.
        peak_node: Where the most is live.
        working_set: What is true of the working set.
    """
    figures, survival = simulation.figures, simulation.survival[mode]

    def size(n_bytes: float) -> str:
        return format_bytes(n_bytes, decimal)

    def sizes(band: Band) -> str:
        return f"{size(band.nominal)} ({size(band.low)} to {size(band.high)})"

    def seconds(name: str) -> str:
        band = figures[name]
        return f"{band.nominal:.2f} s ({band.low:.2f} to {band.high:.2f})"

    margin = survival.margin_bytes
    spare = f"{size(abs(margin))} {'to spare' if margin >= 0 else 'too much'}"
    held = ", ".join(f"{name} {size(n)}" for name, n in list(result.peak_by_value.items())[:3])
    rows = [
        ("model", f"{result.model}, {result.schedule}, seq {result.seq_len}, {result.trained}"),
        ("device", simulation.device.title),
        ("verdict", f"{survival.verdict} under {size(survival.limit.nominal)}, {mode}: {spare}"),
        ("peak footprint", sizes(figures["peak_footprint_bytes"])),
        ("  app baseline", sizes(figures["app_baseline_bytes"])),
        ("  working set", f"{size(result.peak_working_set_bytes or 0)}, {working_set}"),
        ("  held by", f"{held} at {peak_node}"),
        *((f"limit {name}", f"{sizes(s.limit)}: {s.verdict}") for name, s in simulation.survival.items()),
        ("step", f"{seconds('step_s')}, median of {len(result.steps)}"),
        ("  cold", f"{seconds('cold_step_s')}, the first one: no file page in memory"),
        ("  warm", seconds("warm_step_s")),
        ("  hot", f"{seconds('hot_step_s')}, warm and at the thermal floor"),
        *(
            (f"  {label}", f"{seconds(f'{name}_s')} of the warm one")
            for label, name in (
                ("compute", "compute"),
                ("unpack", "unpack"),
                ("page-in", "page_in"),
                ("spill", "spill"),
            )
        ),
        ("energy", "{0.nominal:.1f} J ({0.low:.1f} to {0.high:.1f}) a step".format(figures["energy_j"])),
        ("flash", _wear(figures, decimal)),
    ]
    return [f"{name:<18}{text}" for name, text in rows]


def _wear(figures: Mapping[str, Band], decimal: bool) -> str:
    """Say what a step reads and writes, and how much of the day's writes a day of steps takes."""
    read, written = figures["warm_read_bytes"].nominal, figures["written_bytes"].nominal
    text = f"{format_bytes(read, decimal)} read and {format_bytes(written, decimal)} written a step"
    if not written:
        return text
    by_writes, by_time = figures["steps_per_day_by_writes"].nominal, figures["steps_per_day_by_time"].nominal
    return f"{text}; the day's write budget is {by_writes:,.0f} steps, the day has time for {by_time:,.0f}"
