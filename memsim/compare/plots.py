"""The curves of a comparison as one SVG: loss and accuracy against steps and against what the steps cost."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from memsim.compare.record import Curve, Point, Spread
from memsim.files import atomic_write
from memsim.printable import printable

AXES: Mapping[str, Callable[[Point], float]] = {
    "optimizer steps": lambda point: point.step,
    "forward passes (arithmetic)": lambda point: point.forward_passes,
    "weights read (GB)": lambda point: point.bytes_read / 1e9,
    "seconds on this machine": lambda point: point.seconds,
    "seconds on {device}, simulated": lambda point: point.device_s,
}
FIGURES: tuple[Callable[[Point], Spread], ...] = (lambda point: point.loss, lambda point: point.accuracy)
TITLES = {
    False: ("loss on the test text (nats a token)", "next-token accuracy"),
    True: ("loss of the right answers (nats)", "share of test examples answered right"),
}
"""Of ``FIGURES``, for text and for a task."""

_DASHES = ("-", "--", ":", "-.")
_COLOURS = 10


def plot(curves: Sequence[Curve], device: str, of_task: bool, path: Path) -> None:
    """Draw ``curves`` into ``path``; bands are one standard deviation over the seeds, grey lines the base model."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Text as text, and the same bytes from the same data.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "memsim", "font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(4 * len(AXES), 3.4 * len(FIGURES)), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(len(FIGURES), len(AXES), sharey="row", squeeze=False)
        for row, title, figure_of in zip(panels, TITLES[of_task], FIGURES, strict=True):
            for panel, (label, cost_of) in zip(row, AXES.items(), strict=True):
                panel.axhline(figure_of(curves[0].points[0]).mean, color="0.6", linewidth=0.8)
                for number, curve in enumerate(curves):
                    trained = curve.points[1:]  # a logarithmic axis has no zero
                    costs = [cost_of(point) for point in trained]
                    spreads = [figure_of(point) for point in trained]
                    low, high = ([s.mean + sign * s.deviation for s in spreads] for sign in (-1, 1))
                    style = {"color": f"C{number % _COLOURS}", "linestyle": _DASHES[number // _COLOURS % len(_DASHES)]}
                    means = [s.mean for s in spreads]
                    panel.plot(costs, means, linewidth=1.2, label=printable(curve.label), **style)
                    panel.fill_between(costs, low, high, color=style["color"], alpha=0.15, linewidth=0)
                panel.set_xscale("log")
                panel.minorticks_off()
                panel.set_xlabel(label.format(device=printable(device)))
                panel.grid(alpha=0.3, linewidth=0.5)
            row[0].set_ylabel(title)
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(curves), 8))
        with atomic_write(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
