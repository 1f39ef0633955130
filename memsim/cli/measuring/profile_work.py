"""What ``memsim profile`` does once the options are read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from memsim.api.simulation import training_setup
from memsim.bench.runs import timed_run
from memsim.calibration.measure_steps import throw_away
from memsim.cap.processors import available_threads
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.cli.scheme_options import chosen_scheme
from memsim.errors import UsageError
from memsim.planner.run_plan import plan_run
from memsim.reports.layers import PHASES, LayerRow, layer_rows
from memsim.reports.run_files import RunFiles, open_run
from memsim.reports.timeline import Timeline, planned_timeline, spans, timeline
from memsim.result_file import emit_json
from memsim.runtime.config import RunConfig
from memsim.schedules.optimizers import OptimizerConfig
from memsim.units import MIB, format_bytes, is_decimal, parse_bytes
from memsim.weights.dimensions import find_dimensions

_BAR_WIDTH = 30


def layers(
    run: Path | None, model: str, schedule: str, seq_len: int, steps: int, budget: str, compute: str, threads: int,
    plot: Path | None, json_path: str | None,
) -> None:  # fmt: skip
    """Show time by phase and the highest footprint of embedding, every block and head."""
    if run is not None:
        _refuse_options_of_a_run(run)
    config = RunConfig(
        budget_bytes=parse_bytes(budget),
        decimal=is_decimal(budget),
        model=model,
        schedule=schedule,
        seq_len=seq_len,
        steps=steps,
        compute=compute,
        threads=threads,
    )
    with _recorded(run, config) as files:
        rows, decimal, result = layer_rows(files), files.decimal, files.result
    if plot is not None:
        from memsim.reports.plots import plot_layers

        plot_layers(plot, rows, _unit(decimal))
    if json_path is not None:
        about = {"model": result.model, "schedule": result.schedule, "seq_len": result.seq_len}
        emit_json({"command": "profile layers", **about, "parts": [asdict(row) for row in rows]}, json_path)
    if json_path != "-":
        say(*_layers_text(rows, decimal))


@contextmanager
def _recorded(directory: Path | None, config: RunConfig) -> Iterator[RunFiles]:
    """Yield the run in ``directory``, or one that is made now and thrown away."""
    if directory is not None:
        yield open_run(directory)
        return
    with throw_away() as temporary:
        stage(f"running {config.steps} steps of {config.model}, {config.schedule}, seq {config.seq_len}")
        timed_run(replace(config, out=temporary / "run"), stage)
        yield open_run(temporary / "run")


def _layers_text(rows: Sequence[LayerRow], decimal: bool) -> list[str]:
    head = "".join(f"{phase + ', ms':>15}" for phase in (*PHASES, "all"))
    lines = [f"{'part':<12}{head}{'peak footprint':>18}{'live, planned':>18}"]
    for row in rows:
        seconds = [*(row.seconds.get(phase, 0.0) for phase in PHASES), row.total_s]
        peak = "unknown" if row.peak_footprint_bytes is None else format_bytes(row.peak_footprint_bytes, decimal)
        cells = "".join(f"{1e3 * value:>15.2f}" for value in seconds)
        lines.append(f"{row.part:<12}{cells}{peak:>18}{format_bytes(row.planned_bytes, decimal):>18}")
    lines.append(f"all parts: {sum(row.total_s for row in rows):.3f} s; times are of the median step")
    return lines


def memory(
    run: Path | None, model: str, schedule: str, seq_len: int, optimizer: str, accumulate: int, threads: int,
    plot: Path | None, json_path: str | None, **scheme: Any,
) -> None:  # fmt: skip
    """Show memory over a step and the values that are alive at its peak."""
    if run is not None:
        _refuse_options_of_a_run(run)
        files = open_run(run)
        line, held, decimal = timeline(files), list(files.plan.held), files.decimal
        cap = files.result.budget_bytes
    else:
        config, group_size, _ = find_dimensions(model)
        trained, updated = chosen_scheme(scheme), OptimizerConfig(optimizer)
        n_threads = threads or available_threads()
        setup = training_setup(config, group_size, schedule, seq_len, trained, updated, accumulate, n_threads)
        plan = plan_run(setup, "")
        line, held = planned_timeline(plan.program, plan.memory, 0), list(plan.memory.held)
        cap, decimal = None, True
    if plot is not None:
        from memsim.reports.plots import plot_memory

        plot_memory(plot, line, cap, _unit(decimal))
    if json_path is not None:
        emit_json(_memory_plain(line, held), json_path)
    if json_path != "-":
        say(*_memory_text(line, held, decimal))


def _refuse_options_of_a_run(run: Path) -> None:
    """Refuse options that say what to run, where a run is there already.

    Raises:
        UsageError: One was given; the run has settings of its own.
    """
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in ("run", "plot", "json_path"):
            raise UsageError(f"{option.opts[0]} would be ignored: {run} has settings of its own; leave it out")


def _memory_plain(line: Timeline, held: Sequence[tuple[str, int]]) -> dict[str, Any]:
    def plain(sample: Any) -> dict[str, Any]:
        node = sample.node
        return {
            "node": sample.index, "op": node.op, "part": node.part, "phase": node.phase,
            "planned_bytes": sample.planned_bytes, "footprint_bytes": sample.footprint_bytes,
        }  # fmt: skip

    return {
        "command": "profile memory",
        "step": line.step + 1,
        "planned_peak": plain(line.planned_peak),
        "peak": plain(line.peak),
        "held": dict(held),
        "timeline": [plain(sample) for sample in line.samples],
    }


def _memory_text(line: Timeline, held: Sequence[tuple[str, int]], decimal: bool) -> list[str]:
    def size(n_bytes: int | None) -> str:
        return "" if n_bytes is None else format_bytes(n_bytes, decimal)

    cut = spans(line)
    longest = max(max(span.planned_bytes, span.footprint_bytes or 0) for span in cut)
    measured = any(span.footprint_bytes is not None for span in cut)
    lines = [f"{'nodes':<12}{'from':<44}{'live, planned':>14}{'footprint' if measured else '':>12}"]
    for span in cut:
        bar = "#" * round(_BAR_WIDTH * span.planned_bytes / longest)
        numbers = f"{size(span.planned_bytes):>14}{size(span.footprint_bytes):>12}"
        lines.append(f"{f'{span.first}-{span.last}':<12}{span.begins!s:<44.43}{numbers}  {bar}")
    peak = line.planned_peak
    lines.append(f"planned peak {size(peak.planned_bytes)} at node {peak.index} ({peak.node}); alive there:")
    lines += [f"  {name:<52}{size(n_bytes):>12}" for name, n_bytes in held]
    return lines


def _unit(decimal: bool) -> tuple[str, int]:
    return ("MB", 10**6) if decimal else ("MiB", MIB)
