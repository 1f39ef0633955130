"""``memsim sweep``: every point of a grid, planned, simulated or run, a row each."""

from pathlib import Path
from typing import Any

import click

from memsim.cli.json_option import file_option, json_option
from memsim.cli.options import path_option


@click.command(name="sweep", context_settings={"show_default": True})
@click.argument("grid_file", metavar="GRID", type=click.Path(path_type=Path))
@path_option("--out", "SQLite file of the rows; what it has is not done again.  [default: GRID with .sqlite]")
@file_option("--plot", "Picture (SVG).  [default: --out with .svg]")
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Points at a time on this machine; 0 or 1: without Dask.  [default: processors / threads of a run]",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Use the workers of a running Dask scheduler, such as tcp://127.0.0.1:8786.",
)
@click.option("--retry-failed", is_flag=True, help="Do the points again that failed.")
@path_option(
    "--scratch",
    "Where real runs write, on the machine that executes them; a disk, not tmpfs.  [default: beside --out]",
    metavar="DIR",
)
@json_option("the rows, but for their records")
def command(**values: Any) -> None:
    """Do every point of a grid file (TOML): memsim plan, simulate or run, each in a process of its own.

    Rows are written as points end, so the same command goes on where it was stopped. A real run has its own cap and its
    own processors. A point that does not fit is an answer; one that fails for another reason is a row too, and the exit
    code is 1 at the end.
    """
    from memsim.cli.comparing.sweep_work import command as carry_out

    carry_out(**values)
