"""What two records of runs say differently: figures against limits, and the values and ops that grew."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from memsim.cap.footprint import group_error_bytes
from memsim.results import Result, StepResult
from memsim.units import MIB

Kind = Literal["planned", "moved", "measured", "time"]

PLANNED = ("planned_peak_bytes", "planned_mapped_bytes", "file_floor_bytes")
MOVED = ("bytes_paged_in", "bytes_unpacked", "bytes_spilled", "bytes_written")
"""Of a step; the steps of a run are alike, so a record's last one stands for all."""
MEASURED = ("peak_working_set_bytes", "peak_footprint_bytes")


def reading_error_bytes() -> int:
    """Return by how much the peaks of two runs of the same program may differ on this machine.

    Interpreter objects come and go (some 0.5 MiB each way), and the kernel adds its counters up when it likes.
    """
    return MIB + group_error_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of two records.

    Attributes:
        kind: ``planned`` and ``moved`` figures follow from the step program, to the byte; others are measured.
        baseline: In the older record; None where it is not known, or not comparable.
        limit: The highest value that passes; None when nothing is required.
        actual: In the newer record.
        note: Why there is no limit.
    """

    name: str
    kind: Kind
    baseline: float | None
    actual: float | None
    limit: float | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether ``actual`` is above ``limit``."""
        return self.limit is not None and self.actual is not None and self.actual > self.limit


@dataclass(frozen=True, slots=True)
class Growth:
    """A value or an op that takes more than before; a ``before`` of 0 is one that is new."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Held:
    """A value that is held until another node than before."""

    name: str
    before: str
    after: str


def figures(result: Result, baseline: Result, tolerance: float) -> list[Figure]:
    """Return the bytes of two runs of one configuration, each with the limit that ``tolerance`` gives.

    Args:
        result: The newer record.
        baseline: The older record.
        tolerance: Relative growth that passes. Measured figures may grow by the reading error, if that is more.
    """
    found = [_figure(name, "planned", result, baseline, tolerance) for name in PLANNED]
    for name in MOVED:
        last = [getattr(record.steps[-1], name) if record.steps else None for record in (baseline, result)]
        found.append(_limited(name, "moved", last[0], last[1], tolerance))
    same_programs = result.versions == baseline.versions and result.host.cpu == baseline.host.cpu
    for name in MEASURED:
        figure = _figure(name, "measured", result, baseline, tolerance)
        if name == "peak_footprint_bytes" and not same_programs:
            # It holds the interpreter and its libraries, which are others: only the working set can be compared.
            note = "another processor, or other versions of memsim, Python or Numba than the baseline's"
            figure = Figure(name=name, kind="measured", baseline=figure.baseline, actual=figure.actual, note=note)
        found.append(figure)
    return found


def _figure(name: str, kind: Kind, result: Result, baseline: Result, tolerance: float) -> Figure:
    return _limited(name, kind, getattr(baseline, name), getattr(result, name), tolerance)


def _limited(name: str, kind: Kind, before: int | None, after: int | None, tolerance: float) -> Figure:
    if before is None:
        return Figure(name=name, kind=kind, baseline=None, actual=after, note="not in the baseline")
    room = before * tolerance
    if kind == "measured":
        room = max(room, reading_error_bytes())
    return Figure(name=name, kind=kind, baseline=before, actual=after, limit=before + room)


def side_by_side(old: Result, new: Result) -> list[Figure]:
    """Return the figures of two runs, which may be of different configurations, without limits."""
    last = [record.steps[-1] if record.steps else StepResult() for record in (old, new)]
    pairs: list[tuple[Kind, str, Result | StepResult, Result | StepResult]] = [
        *[("planned", name, old, new) for name in PLANNED],
        *[("moved", name, last[0], last[1]) for name in MOVED],
        *[("measured", name, old, new) for name in ("baseline_footprint_bytes", *MEASURED)],
        ("measured", "loss", last[0], last[1]),
        ("time", "step_s", old, new),
    ]
    rows = [(kind, name, getattr(one, name), getattr(other, name)) for kind, name, one, other in pairs]
    return [
        Figure(name=name, kind=kind, baseline=before, actual=after)
        for kind, name, before, after in rows
        if before is not None or after is not None
    ]


@dataclass(frozen=True, slots=True)
class Otherwise:
    """What two runs were asked for otherwise; None where one has no such setting, or its record does not say."""

    name: str
    a: str | None
    b: str | None


def asked_otherwise(old: Result, new: Result) -> list[Otherwise]:
    """Return the settings, files and commands of two runs that are not the same."""
    before, after = (record.request.rows() if record.request else {} for record in (old, new))
    names = dict.fromkeys((*before, *after))
    rows = [Otherwise(name, before.get(name), after.get(name)) for name in names]
    return [row for row in rows if row.a != row.b]


def grown(before: Mapping[str, int], after: Mapping[str, int], least_bytes: int = 0) -> list[Growth]:
    """Return what grew by more than ``least_bytes``, most growth first."""
    rows = [Growth(name, before.get(name, 0), n_bytes) for name, n_bytes in after.items()]
    rows = [row for row in rows if row.after - row.before > least_bytes]
    return sorted(rows, key=lambda row: (row.before - row.after, row.name))
