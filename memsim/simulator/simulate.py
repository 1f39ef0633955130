"""A run on a device: step times cold, warm and hot, energy and wear, and whether the app survives; each with a band."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, median

from memsim.results import Band, Verdict
from memsim.simulator.device import CORNERS, Corner, Device, Numbers
from memsim.simulator.modes import MODES, Mode
from memsim.simulator.pagecache import PageCache
from memsim.simulator.thermal import Heat
from memsim.simulator.trace import StepTrace, TraceNode
from memsim.simulator.walk import NodeTime, StepTime, file_cache, footprint, walk


@dataclass(frozen=True, slots=True)
class CornerRun:
    """A run with one choice of the device's numbers.

    Attributes:
        cold: The first step, on a cool device without a file page in memory.
        warm: The second one.
        hot: A later one, at the thermal floor.
        steps_s: Each step of the run, the device getting hot.
    """

    numbers: Numbers
    cold: StepTime
    warm: StepTime
    hot: StepTime
    steps_s: tuple[float, ...]

    def first_two_steps(self) -> Iterator[NodeTime]:
        """Yield the nodes of the first step and of the second, which starts with all memory touched."""
        yield from self.cold.timeline
        yield from self.warm.timeline

    @property
    def peak_bytes(self) -> int:
        """The highest footprint of the run."""
        return max(node.footprint_bytes for node in self.first_two_steps())


@dataclass(frozen=True, slots=True)
class Survival:
    """What a memory limit does to the run.

    Attributes:
        limit: The band of the limit.
        killed_at: The first node whose footprint is above it, by the nominals; None if there is none.
        warned_at: The first node that is above the share at which the system warns.
    """

    mode: Mode
    verdict: Verdict
    limit: Band
    margin_bytes: int
    killed_at: TraceNode | None
    warned_at: TraceNode | None


@dataclass(frozen=True, slots=True)
class Simulation:
    """A run of one step program on one device.

    Attributes:
        survival: By the mode in which the app runs.
        figures: Bands of everything that is one number (bytes, seconds, joules), by name with unit.
        peak_node: Where the footprint first reaches its peak.
    """

    device: Device
    corners: Mapping[Corner, CornerRun]
    survival: Mapping[Mode, Survival]
    figures: Mapping[str, Band]
    peak_node: TraceNode

    @property
    def nominal(self) -> CornerRun:
        """The run with every number at its nominal."""
        return self.corners["nominal"]


def simulate(
    trace: StepTrace,
    device: Device,
    n_steps: int,
    budget_bytes: int | None = None,
    advised: bool = True,
    dropping: bool = False,
) -> Simulation:
    """Simulate ``n_steps`` of ``trace`` in a row.

    Args:
        trace: One step.
        device: Where.
        n_steps: At least 1.
        budget_bytes: A limit of one's own, if it is below the device's.
        advised: Whether page-ins ask for whole files in advance or fault their way through.
        dropping: Whether evicted weights leave the page cache too: every page-in of every step is cold.
    """
    corners = {corner: _run(trace, device, device.at(corner), n_steps, advised, dropping) for corner in CORNERS}
    nominal = corners["nominal"]
    peak = next(n.node for n in nominal.first_two_steps() if n.footprint_bytes == nominal.peak_bytes)
    survival = {mode: _survival(mode, corners, budget_bytes) for mode in MODES}
    figures = {corner: _figures(run) for corner, run in corners.items()}
    bands = {name: _band([figures[corner][name] for corner in CORNERS]) for name in figures["nominal"]}
    return Simulation(device, corners, survival, bands, peak)


def _run(trace: StepTrace, device: Device, numbers: Numbers, n_steps: int, advised: bool, dropping: bool) -> CornerRun:
    cache = PageCache(file_cache(numbers, footprint(numbers, device.rule, 0)))
    cold = walk(trace, numbers, device.rule, cache, advised, dropping=dropping)
    warm = walk(trace, numbers, device.rule, cache, advised, first=False, dropping=dropping)
    hot = walk(trace, numbers, device.rule, cache, advised, first=False, hot=True, dropping=dropping)
    times = Heat.of(numbers).step_times(warm.split.total_s, hot.split.total_s, n_steps)
    times[0] += cold.split.total_s - warm.split.total_s
    return CornerRun(numbers, cold, warm, hot, tuple(times))


def _figures(run: CornerRun) -> dict[str, float]:
    """Return what is one number, by its name in records."""
    mean_s = fmean(run.steps_s)
    written = run.warm.written_bytes
    return {
        "peak_footprint_bytes": run.peak_bytes,
        "app_baseline_bytes": run.numbers.app_baseline_bytes,
        "step_s": median(run.steps_s),
        "cold_step_s": run.cold.split.total_s,
        "warm_step_s": run.warm.split.total_s,
        "hot_step_s": run.hot.split.total_s,
        "run_s": sum(run.steps_s),
        "compute_s": run.warm.split.compute_s,
        "unpack_s": run.warm.split.unpack_s,
        "page_in_s": run.warm.split.page_in_s,
        "spill_s": run.warm.split.spill_s,
        "energy_j": mean_s * run.numbers.active_power_w,
        "warm_read_bytes": run.warm.read_bytes,
        "written_bytes": written,
        # How many steps a day write less than the budget.
        "steps_per_day_by_writes": run.numbers.write_budget_bytes_per_day / written if written else 0.0,
        "steps_per_day_by_time": 86_400 / run.hot.split.total_s,
    }


def _band(values: list[float]) -> Band:
    return Band(min(values), values[CORNERS.index("nominal")], max(values))


def _survival(mode: Mode, corners: Mapping[Corner, CornerRun], budget_bytes: int | None) -> Survival:
    """Judge by the nominals; the band of footprint and limit makes a run that would fit one at risk."""
    limits = {corner: _limit(run.numbers, mode, budget_bytes) for corner, run in corners.items()}
    run, limit = corners["nominal"], limits["nominal"]
    killed = _first_above(run, limit)
    warned = _first_above(run, int(limit * run.numbers.warning_fraction))
    verdict: Verdict = "warned" if warned else "fits"
    if killed:
        verdict = "killed"
    elif corners["worse"].peak_bytes > limits["worse"]:
        verdict = "at risk"
    return Survival(mode, verdict, _band([limits[c] for c in CORNERS]), limit - run.peak_bytes, killed, warned)


def _limit(numbers: Numbers, mode: Mode, budget_bytes: int | None) -> int:
    limit = {
        "foreground": numbers.foreground_limit_bytes,
        "entitled": numbers.entitled_limit_bytes,
        "background": numbers.background_limit_bytes,
    }[mode]
    return int(limit) if budget_bytes is None else min(int(limit), budget_bytes)


def _first_above(run: CornerRun, limit_bytes: int) -> TraceNode | None:
    return next((n.node for n in run.first_two_steps() if n.footprint_bytes > limit_bytes), None)
