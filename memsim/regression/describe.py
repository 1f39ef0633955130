"""Comparisons for people: one short table, and what grew."""

from collections.abc import Sequence

from memsim.columns import aligned
from memsim.regression.check import Check
from memsim.regression.differences import Figure, Growth, Otherwise
from memsim.units import format_bytes

MOST_ROWS = 6
"""Of values and of ops: more than these nobody reads."""


def table(figures: Sequence[Figure], names: tuple[str, str] = ("baseline", "actual"), only: bool = False) -> list[str]:
    """Return lines of figure, baseline, limit (where there is one), actual and verdict.

    Args:
        figures: The figures.
        names: What to call the older and the newer record.
        only: Leave out what passes.
    """
    limits = any(figure.limit is not None for figure in figures)
    rows = [("", names[0], *(["limit"] if limits else []), names[1], "")]
    for figure in figures:
        if only and not figure.failed:
            continue
        cells = [_shown(figure, figure.baseline), *([_shown(figure, figure.limit)] if limits else [])]
        rows.append((figure.name.removesuffix("_bytes"), *cells, _shown(figure, figure.actual), _verdict(figure)))
    return aligned(rows, (0, len(rows[0]) - 1))


def _shown(figure: Figure, value: float | None) -> str:
    if value is None:
        return "-"
    return format_bytes(value) if figure.name.endswith("_bytes") or figure.name in _MOVED else f"{value:.2f}"


_MOVED = ("bytes_paged_in", "bytes_unpacked", "bytes_spilled", "bytes_written")


def _verdict(figure: Figure) -> str:
    if figure.failed:
        return "TOO MUCH"
    change = ""
    if figure.baseline and figure.actual is not None and figure.actual != figure.baseline:
        change = f"{figure.actual / figure.baseline - 1:+.1%}"
    return f"{change} ({figure.note})".strip() if figure.note else change


def what_grew(found: Check) -> list[str]:
    """Return the values and ops that explain a comparison."""
    longer = [f"  {row.name}  until {row.after} (was: {row.before})" for row in found.longer]
    return [
        *growth_lines("values that grew, or are new, at the peak", found.values),
        *_listed("values held until another node", longer),
        *growth_lines("ops with a higher footprint after them", found.ops),
    ]


def otherwise_lines(rows: Sequence[Otherwise]) -> list[str]:
    """Return a title and a line for each setting that is another; nothing without rows."""
    lines = [f"  {row.name}  {row.a or '-'} -> {row.b or '-'}" for row in rows]
    return ["asked for otherwise", *map(printable, lines)] if lines else []


def printable(line: str) -> str:
    """Return an untrusted ``line`` with what is not printable, such as escapes and line ends, written out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def growth_lines(title: str, rows: Sequence[Growth]) -> list[str]:
    """Return ``title`` and a line for each of the first rows; nothing without rows."""
    lines = [
        f"  {row.name}  {format_bytes(row.before)} -> {format_bytes(row.after)}" if row.before
        else f"  {row.name}  {format_bytes(row.after)}, new"
        for row in rows
    ]  # fmt: skip
    return _listed(title, lines)


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    rest = [f"  and {len(lines) - MOST_ROWS} more"] if len(lines) > MOST_ROWS else []
    return [title, *lines[:MOST_ROWS], *rest] if lines else []
