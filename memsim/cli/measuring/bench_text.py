"""What ``memsim bench`` says to people: its reports as tables."""

from collections.abc import Callable

from memsim.bench.kernels import KernelsReport, Row, Total
from memsim.bench.step import StepReport
from memsim.bench.zeroth_order import Finding, ZoReport
from memsim.columns import aligned
from memsim.results import Result
from memsim.units import format_bytes

Cells = list[tuple[str, ...]]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ratios(row: Row | Total, report: KernelsReport) -> tuple[str, ...]:
    """Return the cells that rows and totals share: rate, share of each roof, unpacking, ratio to each peer."""
    roofs = [_number(row.share_of_roof.get(name), ".0%") for name in report.roofs_gflop_per_s]
    peers = [_number(row.speedup.get(name), ".2f") for name in report.peers]
    return (_number(row.gflop_per_s, ",.0f"), *roofs, _number(row.unpack_share, ".1%"), *peers)


def kernels_text(report: KernelsReport) -> str:
    """Return the kernels, and their totals, as tables."""
    shared = [*(f"of {name}" for name in report.roofs_gflop_per_s), "unpack", *(f"x {name}" for name in report.peers)]
    head = ("compute", "model", "what", "op", "shape", "ms", "spread", "GB/s", "GFLOP/s", *shared)
    rows: Cells = [head]
    for row in report.rows:
        cells = (row.compute, row.model, row.label, row.op, row.shape, f"{1e3 * row.time.median_s:.2f}")
        rows.append((*cells, f"{row.time.spread:.0%}", _number(row.gb_per_s, ".1f"), *_ratios(row, report)))
    totals: Cells = [("compute", "weighted by FLOPs", "GFLOP/s", *shared)]
    totals += [(total.compute, total.op, *_ratios(total, report)) for total in report.totals]
    roofs = ", ".join(f"{name} {rate:,.0f}" for name, rate in report.roofs_gflop_per_s.items())
    lines = [*aligned(rows, range(5)), "", *aligned(totals, range(2)), "", f"roofs, registers only, GFLOP/s: {roofs}"]
    return "\n".join(lines)


def step_text(report: StepReport, decimal: bool) -> str:
    """Return a step beside its peers and the roof."""
    run = report.run

    def size(n_bytes: int | None) -> str:
        return format_bytes(n_bytes or 0, decimal)

    rows: Cells = [("step", "s", "spread", "peak", "of it", "memsim is faster by")]
    ours = (f"memsim {run.schedule} {run.compute}", f"{report.time.median_s:.2f}", f"{report.time.spread:.0%}")
    rows.append((*ours, size(run.peak_footprint_bytes), "footprint", ""))
    rows.append(("", "", "", size(run.peak_rss_bytes), "RSS", ""))
    for peer in report.peers:
        cells = (peer.name, f"{peer.time.median_s:.2f}", f"{peer.time.spread:.0%}", size(peer.peak_rss_bytes), "RSS")
        rows.append((*cells, f"{peer.speedup:.2f} x"))
    roofs = ", ".join(
        f"{report.times_the_roof[name]:.2f} times the {name} roof of {rate:,.0f} GFLOP/s"
        for name, rate in report.roofs_gflop_per_s.items()
        if name in report.times_the_roof
    )
    work = f"{run.model}, seq {run.seq_len}: {report.flops / 1e9:,.0f} GFLOP a step, {roofs}"
    without = [] if report.peers else ["no peers: install the extra `torch`"]
    return "\n".join([*aligned(rows, range(1)), work, *without])


def footprint_text(runs: list[Result], decimal: bool) -> str:
    """Return footprints, and how they grow with the sequence."""
    rows: Cells = [("model", "schedule", "seq", "peak footprint", "baseline", "working set", "planned", "step s")]
    for run in runs:
        sizes = (
            run.peak_footprint_bytes,
            run.baseline_footprint_bytes,
            run.peak_working_set_bytes,
            run.planned_footprint_bytes,
        )
        cells = (run.model, f"{run.schedule} {run.compute}", str(run.seq_len))
        rows.append((*cells, *(format_bytes(size or 0, decimal) for size in sizes), f"{run.step_s:.2f}"))
    lines = aligned(rows, range(2))
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        first, last = min(own, key=lambda run: run.seq_len or 0), max(own, key=lambda run: run.seq_len or 0)
        if first is not last:
            growth = format_bytes((last.peak_footprint_bytes or 0) - (first.peak_footprint_bytes or 0), decimal)
            lines.append(f"{model}: {growth} more from seq {first.seq_len} to {last.seq_len}")
    return "\n".join(lines)


def zo_text(report: ZoReport, decimal: bool) -> str:
    """Return zeroth-order steps beside each other and their peers, and each figure beside what it should be."""

    def size(n_bytes: float) -> str:
        return format_bytes(int(n_bytes), decimal)

    rows: Cells = [("step", "page cache", "s", "spread", "paged in", "unpacked", "from disk", "peak", "of it")]
    for item in report.runs:
        run, moved = item.run, (item.paged_in_bytes, item.unpacked_bytes, item.disk_bytes)
        time = (f"{item.time.median_s:.2f}", f"{item.time.spread:.0%}")
        what = (f"memsim {run.schedule} {run.compute}", run.page_cache or "")
        rows.append((*what, *time, *map(size, moved), size(item.peak_footprint_bytes), "footprint"))
    for peer in report.peers:
        time = (f"{peer.time.median_s:.2f}", f"{peer.time.spread:.0%}")
        rows.append((peer.name, "", *time, "", "", "", size(peer.peak_rss_bytes), "RSS"))
    first = report.runs[0].run
    where = f"{first.model}, seq {first.seq_len}; simulated: {report.device}"
    without = [] if report.peers else ["no peers: install the extra `torch`"]
    findings = aligned([_finding(item, size) for item in report.findings], range(1))
    return "\n".join([*aligned(rows, range(2)), "", "mezo's", *findings, where, *without])


def _finding(finding: Finding, size: Callable[[float], str]) -> tuple[str, ...]:
    def show(value: float) -> str:
        return size(value) if finding.unit == "bytes" else f"{value:.2f}{' x' if finding.unit == 'times' else ''}"

    band = f"({show(finding.band.low)} to {show(finding.band.high)})" if finding.band else ""
    asked = [
        f"{words} {show(bound)}"
        for words, bound in (("at most", finding.at_most), ("at least", finding.at_least))
        if bound is not None
    ]
    missed = {True: "", False: "MISSED", None: ""}[finding.holds]
    return (f"  {finding.name}", show(finding.value), band, *(asked or [""]), missed)
