"""Charts as inline SVG that fit any width: shapes are stretched, text is HTML beside them and never is.

Every string that reaches a page passes through ``text``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

from memsim.printable import printable

Point = tuple[float, float]
Form = Callable[[float], str]
"""How a number is shown."""

COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")
"""Classes of the page's style sheet."""

_SIDE = 1000
_MOST_COLUMNS = 500


def text(value: object) -> str:
    """Return ``value`` for HTML, in an element or in a quoted attribute; what is not printable, as its escape."""
    return escape(printable(value), quote=True)


def datum(name: str, value: float, shown: str) -> str:
    """Return a number as people read it that carries the exact one, under its name in records."""
    return f'<data class="{text(name)}" value="{value!r}">{text(shown)}</data>'


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points.

    Attributes:
        colour: One of ``COLOURS``.
        steps: Whether a value holds until the next point.
    """

    label: str
    colour: str
    points: Sequence[Point]
    steps: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line, such as a limit."""

    label: str
    colour: str
    value: float


@dataclass(frozen=True, slots=True)
class Stripe:
    """A stretch of the x axis."""

    label: str
    colour: str
    start: float
    stop: float


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return ``count`` round numbers or so from ``low`` to ``high``: multiples of 1, 2 or 5 times a power of 10."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = -floor(-low / step)
    return [index * step for index in range(int(first), int(floor(high / step * (1 + 1e-12))) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_form: Form,
    y_form: Form,
    *,
    y_low: float = 0.0,
    levels: Sequence[Level] = (),
    stripes: Sequence[Stripe] = (),
    mark: tuple[float, float, str] | None = None,
    x_ticks: Sequence[tuple[float, float]] | None = None,
) -> str:
    """Return a chart with its legend.

    Args:
        title: What it shows, also for who cannot see it.
        lines: At least one with a point.
        x_form: Shows a number of the x axis.
        y_form: Shows a number of the y axis, and of the levels in the legend.
        y_low: Where the y axis begins.
        levels: Horizontal lines; the y axis reaches them.
        stripes: Stretches of the x axis in the background, named in the legend once.
        mark: A point (x, y) to circle, and what the legend says of it.
        x_ticks: Places on the x axis and what they are called; round numbers by default.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [level.value for level in levels]
    x_low, x_high = min(xs), max(xs)
    y_high = y_low + (max(ys) - y_low) * 1.06 or y_low + 1.0

    def at_x(x: float) -> float:
        return (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5

    def at_y(y: float) -> float:
        return 1 - (y - y_low) / (y_high - y_low)

    shapes = [
        f'<rect class="stripe {item.colour}" x="{_SIDE * at_x(item.start):.1f}" y="0" height="{_SIDE}" '
        f'width="{_SIDE * (at_x(item.stop) - at_x(item.start)):.1f}"/>'
        for item in stripes
    ]
    grid = [(at_y(y), y_form(y)) for y in ticks(y_low, y_high)]
    shapes += [f'<path class="grid" d="M0 {_SIDE * y:.1f}H{_SIDE}"/>' for y, _ in grid]
    shapes += [f'<path class="level {item.colour}" d="M0 {_SIDE * at_y(item.value):.1f}H{_SIDE}"/>' for item in levels]
    for line in lines:
        placed = [(_SIDE * at_x(x), _SIDE * at_y(y)) for x, y in line.points]
        shapes.append(f'<path class="line {line.colour}" d="{_path(placed, line.steps)}"/>')
    places = x_ticks or [(x, x) for x in ticks(x_low, x_high)]
    labels = [f'<span class="y" style="top:{100 * y:.2f}%">{text(name)}</span>' for y, name in grid]
    labels += [f'<span class="x" style="left:{100 * at_x(x):.2f}%">{text(x_form(name))}</span>' for x, name in places]
    legend = [(f"key {line.colour}", line.label) for line in lines]
    legend += [(f"key dashed {item.colour}", f"{item.label} {y_form(item.value)}") for item in levels]
    legend += [(f"key wide {colour}", label) for label, colour in dict.fromkeys((s.label, s.colour) for s in stripes)]
    if mark:
        labels.append(
            f'<span class="mark" style="left:{100 * at_x(mark[0]):.2f}%;top:{100 * at_y(mark[1]):.2f}%"></span>'
        )
        legend.append(("key ring", mark[2]))
    return _figure(title, shapes, labels, legend)


def stacked_bars(title: str, columns: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], form: Form) -> str:
    """Return one bar a column, its parts on top of each other.

    Args:
        title: What it shows.
        columns: Label and the parts, none below 0; at least one column.
        names: Of the parts, which get ``COLOURS`` in turn.
        form: Shows a number of the y axis.
    """
    highest = 1.06 * max(sum(parts) for _, parts in columns) or 1.0
    width = _SIDE / len(columns)
    shapes: list[str] = []
    labels: list[str] = []
    for tick in ticks(0.0, highest):
        top = 1 - tick / highest
        shapes.append(f'<path class="grid" d="M0 {_SIDE * top:.1f}H{_SIDE}"/>')
        labels.append(f'<span class="y" style="top:{100 * top:.2f}%">{text(form(tick))}</span>')
    every = -(-len(columns) // 8)
    for index, (label, parts) in enumerate(columns):
        base = 0.0
        for number, part in enumerate(parts):
            height = _SIDE * part / highest
            base += height
            shapes.append(
                f'<rect class="bar c{number}" x="{width * (index + 0.1):.1f}" y="{_SIDE - base:.1f}" '
                f'width="{0.8 * width:.1f}" height="{height:.1f}"><title>{text(label)}, {text(names[number])}: '
                f"{text(form(part))}</title></rect>"
            )
        if index % every == 0:
            labels.append(
                f'<span class="x" style="left:{100 * (index + 0.5) / len(columns):.2f}%">{text(label)}</span>'
            )
    return _figure(title, shapes, labels, [(f"key wide c{number}", name) for number, name in enumerate(names)])


def table(head: str, body: str) -> str:
    """Return a table of cells and rows that are HTML already; it scrolls where it is wider than the page."""
    return (
        f'<div class="wide"><table class="grid-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def bar_rows(rows: Sequence[tuple[str, str, float]], colour: str = "c0") -> str:
    """Return a table of (name, number as HTML, length of its bar)."""
    longest = max((length for _, _, length in rows), default=0.0) or 1.0
    cells = [
        f'<tr><th scope="row">{_breakable(name)}</th><td class="number">{number}</td><td class="length">'
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="bar {colour}" '
        f'width="{100 * length / longest:.2f}" height="10"/></svg></td></tr>'
        for name, number, length in rows
    ]
    return f'<table class="bars">{"".join(cells)}</table>'


def _breakable(name: str) -> str:
    """Return a name that may be broken after its underscores and slashes."""
    return text(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def thin(points: Sequence[Point], columns: int = _MOST_COLUMNS) -> list[Point]:
    """Return at most two points a column of a chart, its lowest and its highest, so that no peak is lost.

    Args:
        points: In the order of x.
        columns: Into how many the x axis is cut.
    """
    if len(points) <= 2 * columns:
        return list(points)
    first, last = points[0][0], points[-1][0]
    scale = columns / (last - first) if last > first else 0.0
    kept: list[Point] = []
    column: list[int] = []
    for index, (x, _) in enumerate(points):
        if column and int((x - first) * scale) != int((points[column[0]][0] - first) * scale):
            kept += _extremes(points, column)
            column = []
        column.append(index)
    return kept + _extremes(points, column)


def _extremes(points: Sequence[Point], column: Sequence[int]) -> list[Point]:
    low, high = (choose(column, key=lambda index: points[index][1]) for choose in (min, max))
    return [points[index] for index in sorted({low, high})]


def _path(points: Sequence[Point], steps: bool) -> str:
    if not points:
        return ""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    if len(points) == 1:
        parts.append("h0.1")  # a round cap makes it a dot
    for x, y in points[1:]:
        parts.append(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def _figure(title: str, shapes: Sequence[str], labels: Sequence[str], legend: Sequence[tuple[str, str]]) -> str:
    keys = "".join(f'<li><span class="{key}"></span>{text(name)}</li>' for key, name in legend)
    return (
        f'<figure><figcaption>{text(title)}</figcaption><div class="plot"><svg viewBox="0 0 {_SIDE} {_SIDE}" '
        f'preserveAspectRatio="none" role="img" aria-label="{text(title)}">{"".join(shapes)}</svg>'
        f'{"".join(labels)}</div><ul class="legend">{keys}</ul></figure>'
    )
