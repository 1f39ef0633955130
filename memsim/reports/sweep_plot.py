"""A sweep as a picture: peak and step time against what its points differ by most."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from memsim.printable import printable
from memsim.reports.plots import figure
from memsim.sweep.row import Row

_MEASURES: Mapping[str, Callable[[Row], float | None]] = {
    "peak footprint, MB": lambda row: None if row.peak_footprint_bytes is None else row.peak_footprint_bytes / 1e6,
    "step, s": lambda row: row.step_s,
}
_SCALES = {"seq_len": ("tokens", 1), "budget_bytes": ("budget, MB", 1e6), "lora_rank": ("LoRA rank", 1)}
_AXES = (*_SCALES, "model", "schedule", "device")
_MOST_LINES = 40
"""More than so many lines have no legend."""


def plot_sweep(path: Path, rows: Sequence[Row]) -> None:
    """Plot rows as SVG: one line for the points that differ in one number, dots where they differ in none.

    Raises:
        InputError: The file cannot be written.
    """
    varying = [name for name in _AXES if len({getattr(row, name) for row in rows}) > 1]
    numbers = [name for name in varying if name in _SCALES]
    along = max(numbers, key=lambda name: len({getattr(row, name) for row in rows}), default=None)
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(", ".join(_label(row, name) for name in varying if name != along), []).append(row)
    with figure(path, len(_MEASURES)) as axes:
        for one, (title, measure) in zip(axes, _MEASURES.items(), strict=True):
            for number, (label, members) in enumerate(lines.items()):
                found = [(_at(row, along, number), value) for row in members if (value := measure(row)) is not None]
                if found:
                    one.plot(*zip(*sorted(found), strict=True), marker="o", markersize=3, label=printable(label))
            one.set_ylim(bottom=0)
            one.set_ylabel(title)
            one.set_xlabel(_SCALES[along][0] if along else "")
            if along is None:
                one.set_xticks([])
        if axes[0].get_legend_handles_labels()[1] not in ([], [""]) and len(lines) <= _MOST_LINES:
            axes[0].legend(fontsize=6)


def _at(row: Row, along: str | None, number: int) -> float:
    return number if along is None else float(getattr(row, along)) / _SCALES[along][1]


def _label(row: Row, name: str) -> str:
    value = getattr(row, name)
    if name not in _SCALES:
        return Path(str(value)).name
    title, scale = _SCALES[name]
    what, _, unit = title.partition(", ")
    return f"{what} {value / scale:,.0f} {unit}".rstrip()
