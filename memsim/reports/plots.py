"""Plots as SVG files, by matplotlib: the same figures give the same file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memsim.files import atomic_write
from memsim.printable import printable
from memsim.reports.layers import PHASES, LayerRow
from memsim.reports.timeline import Timeline
from memsim.simulator.unpack_share import PARTS, UnpackShare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_IN, _HEIGHT_IN = 4.6, 3.4
_LONGEST_NAME = 12  # of a part; a longer one leaves no room for its bar


@contextmanager
def figure(path: Path, columns: int = 1) -> "Iterator[list[Axes]]":
    """Yield axes side by side; the file is written when they are drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Nothing of a date or a random number in the file; text as text, so that it can be searched and needs no
    # font; and a dollar sign in a name begins no formula.
    svg: Any = {"svg.hashsalt": "memsim", "svg.fonttype": "none", "font.size": 9, "text.parse_math": False}
    with matplotlib.rc_context(svg):
        drawn, axes = pyplot.subplots(1, columns, figsize=(_WIDTH_IN * columns, _HEIGHT_IN), squeeze=False)
        try:
            for one in axes[0]:
                one.spines[["top", "right"]].set_visible(False)
                one.grid(alpha=0.3)
            yield list(axes[0])
            drawn.tight_layout()
            with atomic_write(path) as file:
                drawn.savefig(file, format="svg", metadata={"Date": None})
        finally:
            pyplot.close(drawn)


def plot_shares(path: Path, found: Sequence[UnpackShare]) -> None:
    """Plot the share of unpacking of forward, backward and step against tokens, with its band.

    Raises:
        InputError: The file cannot be written.
    """
    curves: dict[str, list[UnpackShare]] = {}
    for share in sorted(found, key=lambda share: share.seq_len):
        curves.setdefault(share.label, []).append(share)
    with figure(path, len(PARTS)) as axes:
        for part, one in zip(PARTS, axes, strict=True):
            for label, rows in curves.items():
                lengths = [row.seq_len for row in rows]
                bands = [row.share[part] for row in rows]
                (line,) = one.plot(
                    lengths, [100 * band.nominal for band in bands], marker="o", markersize=3, label=printable(label)
                )
                low, high = ([100 * getattr(band, end) for band in bands] for end in ("low", "high"))
                one.fill_between(lengths, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
            one.set_xscale("log", base=2)
            one.set_xticks(
                sorted({row.seq_len for row in found}), [str(n) for n in sorted({row.seq_len for row in found})]
            )
            one.set_ylim(bottom=0)
            one.set_xlabel("tokens")
            one.set_ylabel(f"unpacking, % of the {part}")
        axes[0].legend(fontsize=7)


def plot_layers(path: Path, rows: Sequence[LayerRow], unit: tuple[str, int]) -> None:
    """Plot seconds by phase and peak footprint of every part.

    Args:
        path: The file.
        rows: The parts.
        unit: What memory is shown in, and its bytes.

    Raises:
        InputError: The file cannot be written.
    """
    names = [printable(row.part.removeprefix("block_"))[:_LONGEST_NAME] for row in rows]
    with figure(path, 2) as (time, memory):
        bottom = [0.0] * len(rows)
        for phase in PHASES:
            seconds = [row.seconds.get(phase, 0.0) for row in rows]
            time.bar(names, seconds, bottom=bottom, label=phase)
            bottom = [sum(pair) for pair in zip(bottom, seconds, strict=True)]
        time.set_ylabel("seconds in the median step")
        time.legend(fontsize=7)
        memory.bar(names, [(row.peak_footprint_bytes or 0) / unit[1] for row in rows])
        memory.set_ylabel(f"highest footprint, {unit[0]}")
        for one in (time, memory):
            one.tick_params(axis="x", rotation=90)


def plot_memory(path: Path, line: Timeline, cap_bytes: int | None, unit: tuple[str, int]) -> None:
    """Plot measured footprint and planned live bytes over a step, with its cap if that is near.

    Args:
        path: The file.
        line: The step.
        cap_bytes: What the process was held to.
        unit: What memory is shown in, and its bytes.

    Raises:
        InputError: The file cannot be written.
    """
    planned = [sample.planned_bytes / unit[1] for sample in line.samples]
    measured = [(at, s.footprint_bytes / unit[1]) for at, s in enumerate(line.samples) if s.footprint_bytes is not None]
    with figure(path) as (one,):
        if measured:
            one.step(*zip(*measured, strict=True), where="post", label="footprint (measured)")
        one.step(range(len(planned)), planned, where="post", linewidth=0.8, label="baseline and live values (planned)")
        if cap_bytes is not None and cap_bytes / unit[1] < 2 * max(planned):
            one.axhline(cap_bytes / unit[1], color="tab:red", linestyle="--", label="cap")
        one.set_ylim(bottom=0)
        one.set_xlabel(f"nodes of step {line.step + 1}, in order")
        one.set_ylabel(unit[0])
        one.legend(fontsize=7)
