"""What ``memsim sweep`` does once the options are read."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import psutil

from memsim.cap.processors import available_threads
from memsim.cli import cli
from memsim.cli.progress import stage
from memsim.cli.running.run_settings import asked_run
from memsim.cli.say import say
from memsim.columns import aligned
from memsim.errors import InputError, UsageError
from memsim.result_file import emit_json
from memsim.runtime.interrupt import asking_first
from memsim.sweep.execute import Order, execute
from memsim.sweep.executors import Finished, dask_installed, local_client, on_cluster, one_by_one, remote_client
from memsim.sweep.grid import MODES, Grid, Point, read_grid
from memsim.sweep.row import Row, row_of
from memsim.sweep.store import SCHEMA, Store, open_store
from memsim.units import format_bytes, is_decimal

_MAX_WORKERS = 1024


def command(
    grid_file: Path,
    out: Path | None,
    plot: Path | None,
    workers: int | None,
    scheduler: str | None,
    retry_failed: bool,
    scratch: Path | None,
    json_path: str | None,
) -> None:
    """Do every point of a grid file (TOML): memsim plan, simulate or run, each in a process of its own."""
    grid = read_grid(grid_file, {mode: _option_names(mode) for mode in MODES})
    _check_points(grid.points)
    out = out or grid_file.with_suffix(".sqlite")
    plot = plot or out.with_suffix(".svg")
    if plot.absolute() in (out.absolute(), grid_file.absolute()) or out.absolute() == grid_file.absolute():
        raise UsageError(f"{grid_file}, {out} and {plot} must be three different files; choose others")
    cores = _cores(grid)
    workers = _workers(workers, scheduler, grid, cores)
    keys = [point.key for point in grid.points]
    with open_store(out) as store:
        try:
            with asking_first(lambda: False):  # SIGTERM and a terminal that goes away end a sweep as Ctrl-C does
                _do(grid, store, cores, workers, scheduler, retry_failed, (scratch or out.parent).absolute())
        except KeyboardInterrupt:
            n_rows = sum(1 for _ in store.rows(keys))
            say(f"memsim: {n_rows} of {len(keys)} points are kept; repeat the command to go on", err=True)
            raise
        rows = list(store.rows(keys))
    failed = [row for row in rows if row.status == "failed"]
    if json_path is not None:
        emit_json(_record(grid, rows), json_path)
    if json_path != "-":
        say(*_table(grid, rows))
    if any(row.peak_footprint_bytes is not None for row in rows):
        from memsim.reports.sweep_plot import plot_sweep

        plot_sweep(plot, [row for row in rows if row.status == "done"])
        say(f"{out}, {plot}", err=True)
    if failed:
        say(f"memsim: {len(failed)} of {len(rows)} points failed; --retry-failed does them again", err=True)
        sys.exit(InputError.exit_code)


def _command(mode: str) -> click.Command:
    command = cli.get_command(click.Context(cli), mode)
    assert command is not None
    return command


def _option_names(mode: str) -> set[str]:
    """Return the options of a mode's command, as a grid file writes them."""
    options = (option for parameter in _command(mode).params if not getattr(parameter, "hidden", False)
               for option in parameter.opts)  # fmt: skip
    return {option.removeprefix("--").replace("-", "_") for option in options}


def _check_points(points: Sequence[Point]) -> None:
    """Refuse points whose command line cannot be read.

    Raises:
        UsageError: A value of the wrong kind, or that can never work, or an unknown name.
    """
    for point in points:
        try:
            context = _command(point.mode).make_context(point.mode, list(point.arguments[1:]))
            if point.mode == "run":
                asked_run(context)
        except (click.UsageError, UsageError) as error:
            reason = error.format_message() if isinstance(error, click.UsageError) else error
            raise UsageError(f"{shlex.join(['memsim', *point.arguments])}: {reason}") from None


def _cores(grid: Grid) -> int:
    """Return the processors of each point for itself: those of a real run's threads."""
    if grid.axes.mode != "run":
        return 0
    available = available_threads()
    return int(grid.points[0].settings["threads"]) or available


def _workers(asked: int | None, scheduler: str | None, grid: Grid, cores: int) -> int:
    """Return how many points are done at a time on this machine.

    Raises:
        UsageError: A number that cannot be, or together with ``--scheduler``, or too many for this machine's memory.
        InputError: Dask is needed and not installed.
    """
    if asked is not None and not 0 <= asked <= _MAX_WORKERS:
        raise UsageError(f"--workers {asked} must be from 0 to {_MAX_WORKERS}")
    if asked is not None and scheduler is not None:
        raise UsageError("--workers is for this machine, --scheduler has its own workers; give one of them")
    if not dask_installed():
        if scheduler is not None or (asked or 0) > 1:
            raise InputError("Dask is not installed; pip install 'memsim[cluster]', or leave out --workers")
        return 1
    if scheduler is not None:
        return 0
    workers = max(1, available_threads() // (cores or 1)) if asked is None else max(1, asked)
    largest = max(point.budget_bytes or 0 for point in grid.points)
    ram = psutil.virtual_memory().total
    if cores and workers > 1 and workers * largest > ram:
        raise UsageError(
            f"{workers} runs of up to {format_bytes(largest)} at a time are above this machine's {format_bytes(ram)} "
            f"of RAM; use --workers {max(1, ram // largest)}"
        )
    return workers


def _do(
    grid: Grid, store: Store, cores: int, workers: int, scheduler: str | None, retry_failed: bool, scratch: Path
) -> None:
    """Execute what has no row yet, and write rows as points end."""
    statuses = store.statuses()
    finished = {"done"} if retry_failed else {"done", "failed"}
    missing = {point.key: point for point in grid.points if statuses.get(point.key) not in finished}
    total, done = len(grid.points), len(grid.points) - len(missing)
    if not missing:
        return
    orders = [Order(key, point.arguments, cores, str(scratch)) for key, point in missing.items()]
    workers = min(workers, len(orders))
    where = f"by the workers of {scheduler}" if scheduler else f"{workers} at a time"
    stage(f"{len(missing)} of {total} points to {grid.axes.mode}, {where}")
    with _executed(orders, workers, scheduler) as outcomes:
        for key, outcome in outcomes:
            row = row_of(missing[key], outcome)
            store.add(row)
            done += 1
            say(f"{done}/{total} {' '.join(map(str, missing[key].axes.values()))}: {_told(row)}", err=True)


@contextmanager
def _executed(orders: Sequence[Order], workers: int, scheduler: str | None) -> Iterator[Finished]:
    if scheduler is None and workers <= 1:
        yield one_by_one(orders, execute)
        return
    with remote_client(scheduler) if scheduler else local_client(workers) as client:
        yield on_cluster(orders, execute, client)


def _told(row: Row) -> str:
    if row.status == "failed":
        return f"failed: {row.error}"
    if row.step_s is None:
        return row.error or _verdict(row)
    return f"{_verdict(row)}, {row.step_s:.3g} s a step"


def _verdict(row: Row) -> str:
    return row.status if row.status == "failed" else "fits" if row.fits else row.verdict or "no figures"


def _record(grid: Grid, rows: Sequence[Row]) -> dict[str, Any]:
    points = [asdict(row) | {"settings": json.loads(row.settings)} for row in rows]
    for point in points:
        del point["record"]
    counts = {status: sum(row.status == status for row in rows) for status in ("done", "failed")}
    return {"schema": SCHEMA, "mode": grid.axes.mode, **counts, "points": points}


_AXIS_TITLES = {
    "model": "model",
    "seq_len": "tokens",
    "lora_rank": "rank",
    "schedule": "schedule",
    "budget_bytes": "budget",
    "device": "device",
}


def _table(grid: Grid, rows: Sequence[Row]) -> list[str]:
    """Return one line for each row, and what went wrong below."""
    budgets = grid.axes.budgets
    decimal = not budgets or is_decimal(budgets[0])

    def size(n_bytes: int | None) -> str:
        return "" if n_bytes is None else format_bytes(n_bytes, decimal)

    def cells(row: Row) -> list[str]:
        axes = [getattr(row, name) for name in shown]
        named = [size(value) if name == "budget_bytes" else str(value) for name, value in zip(shown, axes, strict=True)]
        step = "" if row.step_s is None else f"{row.step_s:.3g}"
        return [*named, _verdict(row), size(row.peak_footprint_bytes), size(row.peak_working_set_bytes), step]

    shown = [name for name in _AXIS_TITLES if any(getattr(row, name) is not None for row in rows)]
    head = [*(_AXIS_TITLES[name] for name in shown), "verdict", "peak", "working set", "step s"]
    failed = [f"failed: {row.command}: {row.error}" for row in rows if row.status == "failed"]
    return aligned([head, *map(cells, rows)], ()) + failed
