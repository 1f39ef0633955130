"""The fastest schedule under a budget, and all that is known of the others.

The search is made once for a model, a sequence length and a device, whatever the budget: it leaves a list of
candidates, each faster than all that need less, and beside them the named schedules (see ``named``). A budget takes the
fastest that fits, so a larger budget never gets a slower plan. What a candidate needs is exact but for gaps between
arena values; the planner's own exact figure decides, and the next candidate is tried where it does not fit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.progress_types import CountProgress
from memsim.schedules.choices import Choices
from memsim.schedules.names import AUTO
from memsim.search.counted import Counted
from memsim.search.front import Front, least_mixtures
from memsim.search.named import in_range, planned_by_name
from memsim.search.needs import Needs
from memsim.search.space import Bounds, Region, regions
from memsim.simulator.device import Numbers, Rule

TOLERANCE = 1e-3
"""Candidates whose times differ by less, as a share, are one."""

PACKED = ("tile",)
"""Ways of unpacking where products take packed weights, which this machine's kernels do as fast as any."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule that no other one beats.

    Attributes:
        need_bytes: The smallest budget for it, gaps in the arena left out.
        peak_bytes: Its working set at the peak, the same way.
        time_ps: Predicted picoseconds of a step that finds the weights in memory.
    """

    choices: Choices
    need_bytes: int
    peak_bytes: int
    time_ps: int


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate and its exact plan.

    Attributes:
        need_bytes: The smallest budget for it.
        time_ps: Predicted picoseconds of a step that finds the weights in memory.
        bound: By what share of its time a schedule of the same space that fits could be faster, at most.
    """

    choices: Choices
    plan: RunPlan
    need_bytes: int
    time_ps: int
    bound: float

    @property
    def time_s(self) -> float:
        """The same in seconds."""
        return self.time_ps / 1e12


NeedsOf = Callable[[Choices], Needs | None]
"""How the budget of a schedule is counted; None where it cannot be had."""


@dataclass(frozen=True)
class Search:
    """What was found for one model, sequence length and device.

    Attributes:
        setup: What is planned; its schedule does not matter.
        needs: How budgets of candidates are counted.
        candidates: From the smallest to the fastest.
        named: The named schedules that can be had.
        limits: (bytes, picoseconds): no schedule of the space that needs at most so much is faster.
    """

    setup: TrainingSetup
    needs: Needs
    candidates: tuple[Candidate, ...]
    named: Mapping[str, Found]
    limits: tuple[tuple[int, int], ...]
    model_hash: str = ""
    _plans: dict[Choices, RunPlan] = field(default_factory=dict, repr=False, compare=False)

    def fastest(self, budget_bytes: int) -> Found | None:
        """Return the fastest schedule that fits ``budget_bytes``; None if none does."""
        mixtures = (self.exact(c, budget_bytes) for c in reversed(self.candidates) if c.need_bytes <= budget_bytes)
        first = next((found for found in mixtures if found.need_bytes <= budget_bytes), None)
        fitting = [found for found in self.named.values() if found.need_bytes <= budget_bytes]
        best = min([first, *fitting] if first else fitting, key=lambda found: found.time_ps, default=None)
        return replace(best, bound=self._bound(best.time_ps, budget_bytes)) if best else None

    def smallest(self) -> Found:
        """Return the schedule that needs least."""
        nearly = [c for c in self.candidates if c.need_bytes <= 1.02 * self.candidates[0].need_bytes]
        exact = [self.exact(candidate) for candidate in nearly[:4]]
        return min((*exact, *self.named.values()), key=lambda found: found.need_bytes)

    @property
    def smallest_named(self) -> str:
        """The named schedule that needs least of all schedules; empty where another one does."""
        least = self.smallest()
        return next((name for name, found in self.named.items() if found is least), "")

    def exact(self, candidate: Candidate, budget_bytes: int | None = None) -> Found:
        """Lower and place a candidate.

        Args:
            candidate: One of ``candidates``.
            budget_bytes: For which its bound is stated; None is what it needs.
        """
        if candidate.choices not in self._plans:
            setup = replace(self.setup, schedule=AUTO, choices=candidate.choices)
            self._plans[candidate.choices] = plan_run(setup, self.model_hash)
        plan = self._plans[candidate.choices]
        need = plan_needs(plan, self.needs)
        bound = self._bound(candidate.time_ps, need if budget_bytes is None else budget_bytes)
        return Found(candidate.choices, plan, need, candidate.time_ps, bound)

    def front(self) -> list[Candidate]:
        """Return candidates and named schedules that no other beats, from the smallest to the fastest."""
        exact = (Candidate(f.choices, f.need_bytes, f.plan.memory.peak_bytes, f.time_ps) for f in self.named.values())
        kept: list[Candidate] = []
        for point in sorted((*self.candidates, *exact), key=lambda point: (point.need_bytes, point.time_ps)):
            if not kept or point.time_ps < kept[-1].time_ps:
                kept.append(point)
        return kept

    def _bound(self, time_ps: int, budget_bytes: int) -> float:
        fitting = (ps for n_bytes, ps in self.limits if n_bytes <= budget_bytes)
        return max(1 - min(fitting, default=time_ps) / time_ps, 0.0) if time_ps else 0.0


def plan_needs(plan: RunPlan, needs: Needs) -> int:
    """Return the smallest budget for a plan."""
    return needs.total(plan.memory.peak_bytes, plan.memory.file_floor_bytes, plan.n_nodes)


def search(
    setup: TrainingSetup,
    numbers: Numbers,
    rule: Rule,
    needs: Needs,
    unpacks: Sequence[str] | None = None,
    bounds: Bounds | None = None,
    tolerance: float = TOLERANCE,
    model_hash: str = "",
    needs_of: NeedsOf | None = None,
    progress: CountProgress = lambda done, total: None,
) -> Search:
    """Search all schedules of a setup.

    Args:
        setup: What is planned; its schedule does not matter.
        numbers: The device's rates.
        rule: What it counts.
        needs: How budgets of what is searched for are counted.
        unpacks: Values of ``Choices.unpack``; by default ``block`` only where dense products are the faster ones.
        bounds: How much of the space to look at; all of it by default.
        tolerance: See ``TOLERANCE``.
        model_hash: Of the weights that programs are for; empty where nothing runs.
        needs_of: How budgets of named schedules are counted; by default as those of all others.
        progress: Called with what is done of the search and what there is to do.

    Raises:
        InputError: By the rates, a step has no end.
    """
    if unpacks is None:
        unpacks = ("tile", "block") if numbers.dense_flops_per_s > numbers.matmul_flops_per_s else ("tile",)
    plans = list(planned_by_name(setup, numbers, rule, model_hash))
    numbers, factor = in_range(numbers, max(seconds for *_, seconds in plans))
    named = dict(_named(plans, needs_of or (lambda choices: needs)))
    points: list[_Point] = []
    limits: list[_Point] = []
    found = list(regions(setup.graph(), setup.optimizer, numbers, rule, unpacks, bounds or Bounds(), progress))
    least_of: dict[int, Front] = {}
    for number, region in enumerate(found):
        counted = Counted(setup, region, needs)
        for index, (arena, ps, n_nodes) in enumerate(_rows(region, region.front)):
            points.append((counted.total(arena, n_nodes), ps, number, index))
        if id(region.front) not in least_of:  # regions that differ in what is pinned have the same mixtures
            least_of[id(region.front)] = least_mixtures(region.costs, region.frames, needs.node_bytes)
        below = least_of[id(region.front)]
        for index, (arena, ps, _) in enumerate(_rows(region, below)):
            limits.append((counted.total(arena, 0) - below.slack_bytes, ps, number, index))
    refined: list[_Point] = []
    peaks: dict[tuple[int, int], int] = {}
    for _, ps, number, index in _unbeaten(points, tolerance):
        region = found[number]
        arena, _, n_nodes = _row(region, index)
        counted = Counted(setup, region, needs, region.restored(index))
        refined.append((counted.total(arena, n_nodes), ps, number, index))
        peaks[number, index] = counted.peak(arena)
    candidates = (
        Candidate(found[number].choices(index), need, peaks[number, index], round(factor * ps))
        for need, ps, number, index in _unbeaten(refined, 0.0)
    )
    least = [(need, round(factor * ps)) for need, ps, *_ in _unbeaten(limits, 0.0)]
    least += [(point.need_bytes, point.time_ps) for point in named.values()]
    return Search(setup, needs, tuple(candidates), named, tuple(least), model_hash)


def _named(plans: Sequence[tuple[str, RunPlan, float]], needs_of: NeedsOf) -> Iterator[tuple[str, Found]]:
    """Yield the named schedules that can be had; `Search.fastest` states their bounds."""
    for name, plan, seconds in plans:
        if needs := needs_of(plan.choices):
            yield name, Found(plan.choices, plan, plan_needs(plan, needs), round(1e12 * seconds), 0.0)


_Point = tuple[int, int, int, int]
"""Bytes needed, picoseconds, region, mixture."""


def _rows(region: Region, front: Front) -> Iterator[tuple[int, int, int]]:
    """Yield (live arena bytes, picoseconds, nodes) of every mixture of a front of a region."""
    arena, ps, nodes = (values.tolist() for values in (front.arena_bytes, front.time_ps, front.n_nodes))
    return ((a, t + region.extra_ps, n) for a, t, n in zip(arena, ps, nodes, strict=True))


def _row(region: Region, index: int) -> tuple[int, int, int]:
    front = region.front
    return int(front.arena_bytes[index]), int(front.time_ps[index]) + region.extra_ps, int(front.n_nodes[index])


def _unbeaten(points: Sequence[_Point], tolerance: float) -> list[_Point]:
    """Return, from the smallest to the fastest, the points that none beats in both by more than ``tolerance``.

    The fastest of all is among them.
    """
    kept: list[_Point] = []
    for point in sorted(points):
        if not kept or point[1] * (1 + tolerance) < kept[-1][1]:
            kept.append(point)
    fastest = min(points, key=lambda point: (point[1], point))
    return kept if kept[-1][1] == fastest[1] else [*kept, fastest]
