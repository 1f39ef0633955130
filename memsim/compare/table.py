"""A comparison as a table for people."""

from collections.abc import Sequence

from memsim.columns import aligned
from memsim.compare.record import Curve
from memsim.units import format_bytes

_HEADER = (
    "schedule",
    "steps",
    "lr",
    "loss",
    "accuracy",
    "forwards",
    "read",
    "s here",
    "s device",
    "peak",
    "device peak",
)


def row(item: Curve, decimal: bool) -> tuple[str, ...]:
    """Return what a contender had reached, and spent, at its end."""
    start, end = item.points[0], item.points[-1]
    return (
        item.label,
        f"{item.steps:,}",
        f"{item.lr:g}" + ("*" if item.lr_at_edge else ""),
        f"{start.loss.mean:.4f} -> {end.loss.mean:.4f} +-{end.loss.deviation:.4f}",
        f"{start.accuracy.mean:.2%} -> {end.accuracy.mean:.2%} +-{end.accuracy.deviation:.2%}",
        f"{end.forward_passes:,.0f}",
        format_bytes(end.bytes_read, decimal),
        f"{end.seconds:.1f}",
        f"{end.device_s:.1f}",
        format_bytes(item.peak_footprint_bytes, decimal),
        format_bytes(item.device_peak_footprint_bytes, decimal),
    )


def table(curves: Sequence[Curve], decimal: bool) -> list[str]:
    """Return one line for each contender, the figures aligned."""
    rows = [_HEADER, *(row(item, decimal) for item in curves)]
    lines = aligned(rows)
    if any(item.lr_at_edge for item in curves):
        lines.append("* the best rate is at the edge of its grid; a wider --lr-grid may find a better one")
    return lines
