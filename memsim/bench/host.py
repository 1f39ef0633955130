"""``validate --host``: planned peak and simulated step time against real capped runs on this machine.

Some configurations calibrate: what their nodes took is fitted (``calibration/op_costs.py``). All others are held out:
of them only the plan and the work of the nodes are known. Runs of both sorts take turns, and all of them are repeated
in rounds: what else the machine does for some seconds then falls on one step of several cases, which their medians
leave out, and not on all steps of one.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import psutil

from memsim.calibration.measure_steps import MeasuredSteps, measure_steps, throw_away
from memsim.calibration.op_costs import fit_costs
from memsim.errors import MemsimError, UsageError
from memsim.progress_types import StageProgress
from memsim.runtime.config import RunConfig

ROUNDS = 5
"""Runs of each case, minutes apart: one timed step each, after one that touches its memory first."""
MOST_BUDGET_BYTES = 8 * 10**9
PEAK_GOAL, STEP_MEAN_GOAL, STEP_WORST_GOAL = 0.03, 0.10, 0.20


@dataclass(frozen=True, slots=True)
class HostCase:
    """A configuration to run."""

    model: str
    schedule: str
    seq_len: int

    def __str__(self) -> str:
        return f"{self.model}:{self.schedule}:{self.seq_len}"


def parse_cases(text: str) -> list[HostCase]:
    """Return the cases of a list such as ``qwen2.5-0.5b:tiled:256,opt-125m:mebp:64``.

    Raises:
        UsageError: An item is not MODEL:SCHEDULE:TOKENS.
    """
    cases = []
    for item in text.split(","):
        model, schedule, seq_len = ("", "", *item.strip().rsplit(":", 2))[-3:]
        if not model or not seq_len.isdecimal() or int(seq_len) < 1:
            raise UsageError(f"{item!r} is not MODEL:SCHEDULE:TOKENS, such as qwen2.5-0.5b:tiled:256")
        cases.append(HostCase(model, schedule, int(seq_len)))
    return cases


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """What was said of a configuration and what came out; None where its run failed.

    Attributes:
        calibrates: Whether its times were fitted. Its peak never is.
        failure: What ended it early, in one line; empty if nothing did.
        simulated_peak_bytes: Baseline plus what the step touches, as the simulator counts.
    """

    case: HostCase
    calibrates: bool
    compute: str = ""
    peak_bytes: int | None = None
    planned_peak_bytes: int | None = None
    simulated_peak_bytes: int | None = None
    step_s: float | None = None
    simulated_step_s: float | None = None
    failure: str = ""

    @property
    def errors(self) -> dict[str, float]:
        """Relative errors of what was planned (``planned_peak``) and simulated (``simulated_peak``, ``step``)."""
        pairs = {
            "planned_peak": (self.planned_peak_bytes, self.peak_bytes),
            "simulated_peak": (self.simulated_peak_bytes, self.peak_bytes),
            "step": (self.simulated_step_s, self.step_s),
        }
        return {name: said / came - 1 for name, (said, came) in pairs.items() if said is not None and came}


@dataclass(frozen=True, slots=True)
class HostErrors:
    """Mean and worst absolute relative errors over the held-out configurations that ran."""

    mean: float
    worst: float


@dataclass(frozen=True, slots=True)
class HostValidation:
    """All rows in the order of running, and the errors by name (``planned_peak``, ``simulated_peak``, ``step``)."""

    rows: tuple[HostRow, ...]
    errors: dict[str, HostErrors]


def validate_host(
    calibration: Sequence[HostCase], held_out: Sequence[HostCase], threads: int, progress: StageProgress
) -> HostValidation:
    """Run every case, fit what those of ``calibration`` took, and predict all.

    A held-out run that fails is a row with its failure.

    Raises:
        UsageError: A case is in both lists.
        MemsimError: A calibration run failed.
    """
    if both := set(calibration) & set(held_out):
        raise UsageError(f"{min(map(str, both))} is both calibration and held out; choose another sequence length")
    order = _interleaved(calibration, held_out)
    done = {case: _median(found) for case, found in _measure_all(order, set(calibration), threads, progress).items()}
    runs = [run for case in calibration if isinstance(run := done[case], MeasuredSteps)]
    between_s = median([run.between_s for run in runs])
    costs = fit_costs([sample for run in runs for sample in run.samples], between_s)
    rows = tuple(
        _row(case, case in calibration, found, 0.0)
        if isinstance(found := done[case], MemsimError)
        else _row(case, case in calibration, found, costs.step_s(found.trace, str(found.result.compute)))
        for case in order
    )
    return HostValidation(rows, summarise([row for row in rows if not row.calibrates]))


def summarise(rows: Sequence[HostRow]) -> dict[str, HostErrors]:
    """Return the errors of rows, by name; a name that no row has is absent."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, error in row.errors.items():
            found.setdefault(name, []).append(abs(error))
    return {name: HostErrors(fmean(errors), max(errors)) for name, errors in found.items()}


def _interleaved(calibration: Sequence[HostCase], held_out: Sequence[HostCase]) -> list[HostCase]:
    """Return all cases with those of ``calibration`` spread evenly."""
    total = len(calibration) + len(held_out)
    places = {index * total // len(calibration) for index in range(len(calibration))}
    ours, theirs = iter(calibration), iter(held_out)
    return [next(ours) if index in places else next(theirs) for index in range(total)]


def _measure_all(
    order: Sequence[HostCase], calibration: Set[HostCase], threads: int, progress: StageProgress
) -> dict[HostCase, list[MeasuredSteps] | MemsimError]:
    """Run every case once a round; one that fails is not tried again.

    Raises:
        MemsimError: A calibration run failed.
    """
    done: dict[HostCase, list[MeasuredSteps] | MemsimError] = {}
    for number in range(ROUNDS):
        for index, case in enumerate(order):
            if isinstance(runs := done.setdefault(case, []), MemsimError):
                continue
            sort = "calibration" if case in calibration else "held out"
            progress(f"round {number + 1}/{ROUNDS}, {index + 1}/{len(order)} {case}, {sort}")
            try:
                with throw_away() as directory:
                    runs.append(_measure(case, threads, directory / "run"))
            except MemsimError as error:
                if case in calibration:
                    raise
                done[case] = error
    return done


def _median(found: list[MeasuredSteps] | MemsimError) -> MeasuredSteps | MemsimError:
    """Return the run of the median step, whole: the medians of its nodes, taken one by one, would add up to less."""
    return found if isinstance(found, MemsimError) else sorted(found, key=lambda run: run.step_s)[(len(found) - 1) // 2]


def _measure(case: HostCase, threads: int, out: Path) -> MeasuredSteps:
    budget = min(MOST_BUDGET_BYTES, psutil.virtual_memory().total // 2)
    config = RunConfig(budget_bytes=budget, model=case.model, schedule=case.schedule, seq_len=case.seq_len)
    return measure_steps(replace(config, steps=2, threads=threads, out=out), lambda _: None)


def _row(case: HostCase, calibrates: bool, found: MeasuredSteps | MemsimError, simulated_s: float) -> HostRow:
    if isinstance(found, MemsimError):
        return HostRow(case=case, calibrates=calibrates, failure=str(found))
    result = found.result
    baseline = (result.planned_footprint_bytes or 0) - (result.planned_peak_bytes or 0)
    return HostRow(
        case=case,
        calibrates=calibrates,
        compute=str(result.compute),
        peak_bytes=result.peak_footprint_bytes,
        planned_peak_bytes=result.planned_footprint_bytes,
        simulated_peak_bytes=baseline + found.trace.resident_bytes,
        step_s=found.step_s,
        simulated_step_s=simulated_s,
    )
