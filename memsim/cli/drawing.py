"""How a run looks on stderr: one line a step, and on a terminal a bar of the step that is running."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from memsim.cli.progress import bytes_progress, stage
from memsim.cli.say import say, unheard
from memsim.printable import printable
from memsim.progress_types import BytesProgress
from memsim.runtime.config import RunConfig, scheme_of
from memsim.runtime.run_progress import NodeDone, RunProgress, StepDone
from memsim.units import format_bytes

SYNTHETIC = "synthetic weights: memory and time are real, loss is not"


@contextmanager
def drawn(config: RunConfig) -> Iterator[RunProgress]:
    """Yield the callbacks that draw a run of ``config`` while it goes on."""
    lines = _Lines(config)
    with bytes_progress("packing") as packing:
        if not sys.stderr.isatty():
            yield lines.callbacks(packing)
            return
        with _bar(config, lines) as (node, step):
            yield RunProgress(
                stage=stage, packing=packing, planned=lines.planned, node=node, step=step, note=lines.note
            )


class _Lines:
    """Plain lines, for a pipe, a file or a CI log."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def callbacks(self, packing: BytesProgress) -> RunProgress:
        return RunProgress(
            stage=stage, packing=packing, planned=self.planned, step=self.step, note=self.note, unheard=unheard
        )

    def size(self, n_bytes: int) -> str:
        return format_bytes(n_bytes, self._config.decimal)

    def note(self, text: str) -> None:
        say(text, err=True)

    def planned(self, footprint_bytes: int, source: str) -> None:
        config = self._config
        self.note(
            f"{config.model} {config.schedule}, seq {config.seq_len}, {scheme_of(config).describe()}: "
            f"planned footprint {self.size(footprint_bytes)} under a budget of {self.size(config.budget_bytes)}"
        )
        if source == "synthetic":
            self.note(SYNTHETIC)

    def step(self, done: StepDone) -> None:
        self.note(self.step_text(done))

    def step_text(self, done: StepDone) -> str:
        result, config = done.result, self._config
        seconds = result.step_s or float("nan")
        return (
            f"step {done.step}/{config.steps}  loss {result.loss:.4f}  accuracy {result.accuracy:.1%}  "
            f"{seconds:.2f} s  {config.seq_len * config.accumulate / seconds:.0f} tokens/s  "
            f"footprint {self.size(done.footprint_bytes)} of {self.size(config.budget_bytes)}"
        )


@contextmanager
def _bar(config: RunConfig, lines: _Lines) -> Iterator[tuple[Callable[[NodeDone], None], Callable[[StepDone], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[where]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, visible=False, where="")

        def node(done: NodeDone) -> None:
            where = f"{done.node}  {lines.size(done.footprint_bytes)} of {lines.size(config.budget_bytes)}"
            text = f"step {done.step}/{config.steps}"
            progress.update(
                task,
                description=text,
                completed=done.position,
                total=done.n_nodes,
                where=printable(where),
                visible=True,
            )

        def step(done: StepDone) -> None:
            progress.console.print(printable(lines.step_text(done)), highlight=False, markup=False, soft_wrap=True)

        yield node, step
