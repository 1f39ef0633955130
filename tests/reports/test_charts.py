import random
from html.parser import HTMLParser

import pytest

from memsim.reports.charts import Level, Line, bar_rows, datum, line_chart, stacked_bars, text, thin, ticks

HOSTILE = "<script>alert('x')</script>\" onload=\"y&"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (0.0, 1.06, [0, 0.5, 1.0]),
        (12.07, 12.41, [12.1, 12.2, 12.3, 12.4]),
        (0.0, 2.6e8, [0, 1e8, 2e8]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_thinning_keeps_every_column_s_lowest_and_highest() -> None:
    generator = random.Random(1)
    points = [(float(x), generator.random()) for x in range(10_000)]
    points[1234] = (1234.0, 7.0)
    points[9876] = (9876.0, -7.0)
    kept = thin(points, 100)
    assert len(kept) <= 202
    assert kept == sorted(kept)
    assert {points[1234], points[9876]} <= set(kept)
    for start in range(0, 9900, 500):
        inside, left = ([y for x, y in some if start <= x < start + 500] for some in (points, kept))
        assert max(left) == max(inside) and min(left) == min(inside)
    assert thin(points[:50], 100) == points[:50]


def test_a_number_carries_its_exact_value() -> None:
    assert datum("step_s", 1 / 3, "0.33 s") == f'<data class="step_s" value="{1 / 3!r}">0.33 s</data>'


class _Strict(HTMLParser):
    """Fails on a tag that is not closed, and on anything that could run or load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(name for name, _ in attrs)}
        if tag not in ("path", "rect", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(name for name, _ in attrs)}

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect"):
            assert self.open.pop() == tag


def parsed(html: str) -> _Strict:
    parser = _Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def test_whatever_a_name_holds_is_text() -> None:
    line = Line(HOSTILE, "c0", [(0.0, 1.0), (1.0, 2.0)])
    charts = (
        line_chart(HOSTILE, [line], lambda x: HOSTILE, str, levels=[Level(HOSTILE, "c3", 2.0)], mark=(0, 1, HOSTILE)),
        stacked_bars(HOSTILE, [(HOSTILE, [1.0, 2.0])], [HOSTILE, HOSTILE], str),
        bar_rows([(HOSTILE, datum(HOSTILE, 1, HOSTILE), 1.0)]),
    )
    for chart in charts:
        found = parsed(chart)
        assert not found.names & {"script", "onload"}
        assert text(HOSTILE) in chart or "&lt;script&gt;" in chart


@pytest.mark.parametrize("points", [[(0.0, 0.0)], [(1.0, 5.0), (1.0, 5.0)], [(0.0, 0.0), (2.0, 0.0)]])
def test_a_chart_of_little_is_still_a_chart(points: list[tuple[float, float]]) -> None:
    chart = line_chart("little", [Line("a", "c0", points)], str, str)
    parsed(chart)
    assert "nan" not in chart and "inf" not in chart


def test_a_level_is_inside_the_chart() -> None:
    chart = line_chart("t", [Line("a", "c0", [(0.0, 1.0), (1.0, 2.0)])], str, str, levels=[Level("cap", "c3", 10.0)])
    (y,) = [float(part.split('d="M0 ')[1].split("H")[0]) for part in chart.split("<path ") if "level" in part]
    assert 0 < y < 100  # near the top of 1000: 10 of 10.6
