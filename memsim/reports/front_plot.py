"""The Pareto front of a plan as a picture: seconds of a step against the budget."""

from pathlib import Path

from memsim.errors import InputError
from memsim.files import atomic_write
from memsim.printable import printable
from memsim.results import PlannedResult


def plot_front(planned: PlannedResult, title: str, path: Path) -> None:
    """Write the front, the named schedules and the chosen plan as SVG; the same plan gives the same bytes.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("--plot needs matplotlib; install it, or leave --plot out") from error
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "memsim", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        front = planned.front
        axes.step(
            [p.need_bytes / 1e6 for p in front], [p.step_s for p in front], where="post", label="fastest that fits"
        )
        for point in planned.named:
            axes.plot(point.need_bytes / 1e6, point.step_s, "o", label=printable(point.schedule))
        if planned.chosen is not None:
            axes.plot(planned.chosen.need_bytes / 1e6, planned.chosen.step_s, "*", markersize=14, label="chosen")
        axes.set(title=printable(title), xlabel="smallest budget, MB", ylabel=printable(f"step, s ({planned.device})"))
        axes.set_ylim(bottom=0)
        axes.legend()
        with atomic_write(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
