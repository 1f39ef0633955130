"""The sections of a report that are of one run: memory, time by op, time by part of the model."""

from memsim.reports.charts import Level, Line, Stripe, bar_rows, datum, line_chart, stacked_bars, table, text, thin
from memsim.reports.layers import PHASES, layer_rows
from memsim.reports.run_files import RunFiles
from memsim.reports.timeline import Timeline, timeline
from memsim.units import MIB, format_bytes

_MOST_VALUES = 12
_LEVEL_REACH = 1.7
"""A limit further above the peak than this would flatten the curve: it is named and not drawn."""
_STRIPES = {"forward": "c0", "recompute": "c4", "backward": "c1", "update": "c2"}


def memory(run: RunFiles) -> str:
    """Return the memory of the step with the peak, and what held it."""
    line = timeline(run)
    return memory_chart(run, line) + _attribution(run)


def memory_chart(run: RunFiles, line: Timeline) -> str:
    """Return the chart of the step with the peak: footprint, what the plan says is alive, the cap, the phases."""

    def size(n_bytes: float) -> str:
        return format_bytes(n_bytes, run.decimal)

    end = [(line.seconds, line.samples[-1])]
    times = [(sample.start_s, sample) for sample in line.samples] + end
    measured = [(at_s, sample.footprint_bytes) for at_s, sample in times if sample.footprint_bytes is not None]
    planned = [(at_s, float(sample.planned_bytes)) for at_s, sample in times]
    lines = (
        [Line("footprint (measured)", "c0", thin([(x, float(y)) for x, y in measured]), steps=True)] if measured else []
    )
    lines.append(Line("baseline and live values (planned)", "c1", thin(planned), steps=True))
    highest = max(y for item in lines for _, y in item.points)
    cap, floor = run.result.budget_bytes, run.result.file_floor_bytes or 0
    limits = [("cap", "c3", cap), ("cap less file floor", "c5", cap - floor)] if cap is not None else []
    drawn = [Level(label, colour, float(value)) for label, colour, value in limits if value < _LEVEL_REACH * highest]
    beyond = [f"{label} {size(value)}" for label, _, value in limits if value >= _LEVEL_REACH * highest]
    peak = line.peak
    at = peak.footprint_bytes or peak.planned_bytes
    chart = line_chart(
        f"step {line.step + 1}; the peak is first reached at {peak.node.op}",
        lines,
        lambda x: f"{x:.2f} s",
        size,
        levels=drawn,
        stripes=_phases(line),
        mark=(
            peak.start_s,
            float(at),
            f"{size(at)} after node {peak.index} ({peak.node}), first within {size(MIB)} of the peak",
        ),
    )
    note = f'<p class="note">Above the chart: {text("; ".join(beyond))}.</p>' if beyond else ""
    return chart + note


def _phases(line: Timeline) -> list[Stripe]:
    """Return runs of nodes of one phase."""
    stripes: list[Stripe] = []
    for sample in line.samples:
        phase, stop = sample.node.phase, sample.start_s + sample.seconds
        if stripes and stripes[-1].label == phase:
            stripes[-1] = Stripe(phase, stripes[-1].colour, stripes[-1].start, stop)
        else:
            stripes.append(Stripe(phase, _STRIPES.get(phase, "c5"), sample.start_s, stop))
    return stripes


def _attribution(run: RunFiles) -> str:
    """Return what lived at the planned peak, largest first, the smallest in one row."""
    held = list(run.result.peak_by_value.items())
    rows = [(name, datum("held", n_bytes, format_bytes(n_bytes, run.decimal)), n_bytes) for name, n_bytes in held]
    if len(rows) > _MOST_VALUES:
        rest = sum(n_bytes for _, n_bytes in held[_MOST_VALUES:])
        shown = datum("held", rest, format_bytes(rest, run.decimal))
        rows = [*rows[:_MOST_VALUES], (f"{len(held) - _MOST_VALUES} smaller ones", shown, rest)]
    note = f"What is alive at the planned peak{peak_place(run)}, beside the baseline:"
    return f'<p class="note">{text(note)}</p>{bar_rows(rows, "c1")}'


def peak_place(run: RunFiles) -> str:
    """Name the node of the planned peak; nothing if the peak is that of the evaluation, whose program is not kept."""
    if dict(run.plan.held) != run.result.peak_by_value:
        return ""
    return f", node {run.plan.peak_node} ({run.program.nodes[run.plan.peak_node]})"


def seconds(value: float) -> str:
    """Return a time for people."""
    return f"{value:.2f} s" if value >= 0.1 or value == 0 else f"{1e3 * value:.2f} ms"


def ops(run: RunFiles) -> str:
    """Return the seconds of each op in the median step, largest first."""
    spent = sorted(run.result.time_by_op_s.items(), key=lambda item: -item[1])
    return bar_rows([(op, datum(f"op {op}", value, seconds(value)), value) for op, value in spent])


def layers(run: RunFiles) -> str:
    """Return the seconds of each part of the model in the median step, as a chart and as a table."""
    rows = layer_rows(run)
    columns = [(row.part.replace("block_", ""), [row.seconds.get(phase, 0.0) for phase in PHASES]) for row in rows]
    chart = stacked_bars("seconds by phase; numbers are blocks", columns, PHASES, lambda y: f"{y:g} s")
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("part", "time", *PHASES, "peak footprint", "live, planned")
    )
    body = "".join(
        f'<tr><th scope="row">{text(row.part)}</th><td>{datum("part_s", row.total_s, seconds(row.total_s))}</td>'
        + "".join(f"<td>{seconds(row.seconds.get(phase, 0.0))}</td>" for phase in PHASES)
        + f"<td>{_maybe(row.peak_footprint_bytes, run.decimal)}</td>"
        f"<td>{format_bytes(row.planned_bytes, run.decimal)}</td></tr>"
        for row in rows
    )
    return f"{chart}<details><summary>every part</summary>{table(head, body)}</details>"


def _maybe(n_bytes: int | None, decimal: bool) -> str:
    return "unknown" if n_bytes is None else format_bytes(n_bytes, decimal)
