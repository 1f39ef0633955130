"""Progress on stderr: rich bars on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from memsim.cli.say import say
from memsim.printable import printable
from memsim.progress_types import BytesProgress, CountProgress
from memsim.units import format_bytes


@contextmanager
def bytes_progress(task: str) -> Iterator[BytesProgress]:
    """Yield a callback that shows how far a job over many bytes has come."""
    if not sys.stderr.isatty():
        yield _Lines(task)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(task, total=None, visible=False)

        def update(label: str, done_bytes: int, total_bytes: int) -> None:
            description = printable(f"{task}: {label}")
            bars.update(bar, description=description, completed=done_bytes, total=total_bytes or None, visible=True)

        yield update


class _Lines:
    """Prints one line for every tenth of the work."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._tenths = -1

    def __call__(self, label: str, done_bytes: int, total_bytes: int) -> None:
        tenths = 10 * done_bytes // total_bytes if total_bytes else 0
        if tenths > self._tenths:
            self._tenths = tenths
            done = f"{10 * tenths} % of {format_bytes(total_bytes)}, " if total_bytes else ""
            say(f"{self._task}: {done}{label}", err=True)


@contextmanager
def count_progress(task: str) -> Iterator[CountProgress]:
    """Yield a callback that shows how far a job has come: a bar on a terminal, a line each quarter elsewhere."""
    if not sys.stderr.isatty():
        said = [0]

        def line(done: int, total: int) -> None:
            if 4 * done // total > said[0]:
                said[0] = 4 * done // total
                say(f"{task}: {25 * said[0]} %", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(task, total=None)

        def update(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        yield update


def stage(text: str) -> None:
    """Say what is being done, when it may take over a second."""
    say(f"{text} ...", err=True)
