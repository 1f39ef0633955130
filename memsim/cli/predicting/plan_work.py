"""What ``memsim plan`` does once the options are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from memsim.api.planning import plan as find_plan
from memsim.cli.progress import count_progress, stage
from memsim.cli.say import say
from memsim.cli.scheme_options import chosen_scheme
from memsim.result_file import emit_json
from memsim.results import PlannedResult, PlanPoint, Result
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.record import describe
from memsim.search.search import Found
from memsim.simulator.device import Device
from memsim.units import format_bytes, is_decimal, parse_bytes

_FRONT_ROWS = 12

_BAR = 40


def command(
    model: str,
    seq_len: int,
    budget: str | None,
    device: str,
    optimizer: str,
    accumulate: int,
    threads: int,
    emit: Path | None,
    plot: Path | None,
    json_path: str | None,
    **scheme: Any,
) -> None:
    """Find the fastest training step that fits a budget; nothing is run."""
    trained = chosen_scheme(scheme)
    with count_progress("schedules looked at") as searching:
        planned = find_plan(
            model,
            budget_bytes=parse_bytes(budget) if budget is not None else None,
            device=device,
            seq_len=seq_len,
            scheme=trained,
            optimizer=OptimizerConfig(optimizer),
            accumulate=accumulate,
            threads=threads,
            progress=stage,
            searching=searching,
        )
    decimal = budget is None or is_decimal(budget)
    result = planned.result
    if planned.remark:
        say(planned.remark, err=True)
    if json_path is not None:
        emit_json(result, json_path)
    if json_path != "-":
        say(*_summary(result, trained.describe(), planned.device, planned.found, decimal))
    if plot is not None and result.planned is not None:
        from memsim.reports.front_plot import plot_front

        plot_front(result.planned, f"{result.model}, seq {seq_len}, {trained.describe()}, {optimizer}", plot)
    if not planned.fits:
        raise planned.refusal(decimal)
    if emit is not None:
        planned.write(emit)


def _summary(result: Result, trained: str, device: Device, found: Found | None, decimal: bool) -> list[str]:
    """Return the plan for people, line by line."""
    planned = result.planned
    assert planned is not None

    def size(n_bytes: float) -> str:
        return format_bytes(n_bytes, decimal)

    setup = f"{result.model}, seq {result.seq_len}, {trained}, {result.optimizer}"
    rows = [("model", setup), ("rates", f"{device.name}: {device.title}")]
    rows.append(("budget", size(result.budget_bytes or 0)))
    if found is not None and planned.step_s is not None and planned.footprint_bytes is not None:
        band, step = planned.footprint_bytes, planned.step_s
        rows += [
            ("plan needs", size(found.need_bytes)),
            ("  footprint", f"{size(band.nominal)} ({size(band.low)} to {size(band.high)})"),
            ("  working set", size(found.plan.memory.peak_bytes)),
            ("  step", f"{step.nominal:.2f} s ({step.low:.2f} to {step.high:.2f}), weights in memory"),
            ("  optimal", f"within {max(found.bound, 0.001):.1%} of any schedule of the space"),
            *(("  does" if not number else "", line) for number, line in enumerate(describe(found.choices))),
        ]
        if cost := planned.format_cost:
            more = f"{size(cost.disk_bytes)} on disk, {size(cost.paged_in_bytes)} paged in a step"
            rows += [
                ("  matrices", cost.stored),
                ("", f"over symmetric g32: {more}, {size(cost.file_floor_bytes)} of file floor"),
            ]
    else:
        rows.append(("plan", "nothing fits"))
    longest = f"{planned.longest_seq_len} tokens" if planned.longest_seq_len else "none"
    rows += [("smallest budget", size(planned.smallest_budget_bytes)), ("longest seq", longest)]
    lines = [f"{name:<17}{text}" for name, text in rows]
    return [*lines, "", *_named_table(planned, result.budget_bytes or 0, size), "", *_front(planned, size)]


def _named_table(planned: PlannedResult, budget_bytes: int, size: Callable[[float], str]) -> list[str]:
    chosen = [planned.chosen] if planned.chosen else []
    lines = [f"{'schedule':<10}{'needs':>12}{'working set':>13}{'step s':>9}"]
    for point in (*chosen, *planned.named):
        fits = "" if point.need_bytes <= budget_bytes else "  does not fit"
        lines.append(
            f"{point.schedule:<10}{size(point.need_bytes):>12}{size(point.peak_bytes):>13}{point.step_s:>9.2f}{fits}"
        )
    return lines


def _front(planned: PlannedResult, size: Callable[[float], str]) -> list[str]:
    """Return some of the front as rows with bars as long as their steps."""
    slowest = planned.front[0].step_s
    lines = [f"{'needs':>12}{'step s':>9}  fastest that fits, of {len(planned.front)}"]
    for point in _some(planned.front):
        bar = "#" * max(1, round(_BAR * point.step_s / slowest))
        lines.append(f"{size(point.need_bytes):>12}{point.step_s:>9.2f}  {bar}")
    return lines


def _some(front: tuple[PlanPoint, ...]) -> list[PlanPoint]:
    """Return points at about equal ratios of bytes, the smallest and the fastest among them."""
    low, high = front[0].need_bytes, front[-1].need_bytes
    targets = [low * (high / low) ** (row / (_FRONT_ROWS - 1)) for row in range(_FRONT_ROWS)]
    targets[-1] = high
    chosen = [
        max((p for p in front if p.need_bytes <= target * (1 + 1e-9)), key=lambda p: p.need_bytes) for target in targets
    ]
    return list(dict.fromkeys(chosen))
