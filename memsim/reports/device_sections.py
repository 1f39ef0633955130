"""The sections of a report that are of no single run here: devices side by side, and what decompression costs."""

from collections.abc import Callable, Sequence
from math import log2

from memsim.reports.charts import COLOURS, Line, datum, line_chart, table, text
from memsim.reports.verdicts import Verdict
from memsim.results import Band
from memsim.simulator.modes import MODES
from memsim.simulator.simulate import Survival
from memsim.simulator.unpack_share import PARTS, UnpackShare
from memsim.units import format_bytes

Show = Callable[[Verdict], str]

_TIMES = {
    "cold_step_s": "step, cold",
    "warm_step_s": "step, warm",
    "hot_step_s": "step, hot",
    "compute_s": "of the warm one: compute",
    "unpack_s": "unpack",
    "page_in_s": "page-in",
    "spill_s": "spill",
}
_SIZES = {"peak_footprint_bytes": "peak footprint", "app_baseline_bytes": "of it the app's baseline"}
_CLASSES = {"fits": "good", "warned": "", "at risk": "bad", "killed": "bad"}


def devices(found: Sequence[Verdict]) -> str:
    """Return a table of verdicts, one column for each run on each device; nothing without any."""
    if not found:
        return ""
    rows: list[tuple[str, Show]] = [("run", lambda v: text(v.run.name))]
    rows += [(mode, lambda v, mode=mode: _survival(v.simulation.survival[mode], v.run.decimal)) for mode in MODES]  # type: ignore[misc]
    rows += [(label, lambda v, name=name: _sizes(v, name)) for name, label in _SIZES.items()]  # type: ignore[misc]
    rows += [(label, lambda v, name=name: _seconds(v, name)) for name, label in _TIMES.items()]  # type: ignore[misc]
    rows += [("energy of a step", _energy), ("written by a step", lambda v: _sizes(v, "written_bytes"))]
    head = "".join(f'<th scope="col">{text(v.simulation.device.title)}</th>' for v in found)
    body = "".join(
        f'<tr><th scope="row">{text(label)}</th>{"".join(f"<td>{show(v)}</td>" for v in found)}</tr>'
        for label, show in rows
    )
    note = (
        "The run's own step program, walked with each device's rates: nominal, and in brackets with all numbers of the "
        "device at one end. Footprint is what the device charges an app; there is no interpreter in it."
    )
    return f'<p class="note">{note}</p>{table(f"<td></td>{head}", body)}'


def _survival(survival: Survival, decimal: bool) -> str:
    limit = format_bytes(survival.limit.nominal, decimal)
    margin = format_bytes(abs(survival.margin_bytes), decimal)
    node = survival.killed_at
    where = f" at node {node.index} ({node})" if node else ""
    spare = f"{margin} {'to spare' if survival.margin_bytes >= 0 else 'too much'}"
    verdict = f'<span class="{_CLASSES[survival.verdict]}">{survival.verdict}</span>'
    return f"{verdict}{text(where)} under {limit}: {spare}"


def _brackets(name: str, band: Band, show: Callable[[float], str]) -> str:
    around = f" ({show(band.low)} to {show(band.high)})" if band.low < band.high else ""
    return f"{datum(name, band.nominal, show(band.nominal))}{around}"


def _sizes(verdict: Verdict, name: str) -> str:
    decimal = verdict.run.decimal
    return _brackets(name, verdict.simulation.figures[name], lambda value: format_bytes(value, decimal))


def _seconds(verdict: Verdict, name: str) -> str:
    return _brackets(name, verdict.simulation.figures[name], lambda value: f"{value:.2f} s")


def _energy(verdict: Verdict) -> str:
    return _brackets("energy_j", verdict.simulation.figures["energy_j"], lambda value: f"{value:.1f} J")


def decompression(shares: Sequence[UnpackShare]) -> str:
    """Return three charts, the share of unpacking of forward, backward and step against tokens; nothing without any."""
    if not shares:
        return ""
    curves: dict[str, list[UnpackShare]] = {}
    for share in sorted(shares, key=lambda share: share.seq_len):
        curves.setdefault(share.label, []).append(share)
    lengths = sorted({share.seq_len for share in shares})
    charts = [_curves(part, curves, [(log2(length), float(length)) for length in lengths]) for part in PARTS]
    note = "Turning INT4 weights into floats, as a share of the time; backward includes its recompute."
    return f'<p class="note">{note}</p><div class="side">{"".join(charts)}</div>'


def _curves(part: str, curves: dict[str, list[UnpackShare]], places: list[tuple[float, float]]) -> str:
    lines = [
        Line(label, COLOURS[index % len(COLOURS)], [(log2(at.seq_len), 100 * at.share[part].nominal) for at in rows])
        for index, (label, rows) in enumerate(curves.items())
    ]
    title = f"unpacking, % of the {part}, by tokens"
    return line_chart(title, lines, lambda x: f"{x:g}", lambda y: f"{y:g} %", x_ticks=places)
