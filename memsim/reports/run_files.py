"""The files of one run, untrusted: its record, the program that it executed, and what each node did."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median_low

from memsim.errors import InputError
from memsim.file_names import EVENTS_FILE, PROGRAM_FILE, RESULT_FILE
from memsim.ir.program import Program
from memsim.ir.serialize import load_program
from memsim.json_file import shown
from memsim.planner.plan import MemoryPlan, plan_memory
from memsim.result_file import read_result
from memsim.results import Result
from memsim.run_directory.events import Event, read_events


@dataclass(frozen=True)
class RunFiles:
    """A run that has ended, however it did.

    Attributes:
        directory: Where it left its files.
        result: Its record.
        program: The step program that it executed.
    """

    directory: Path
    result: Result
    program: Program

    @property
    def name(self) -> str:
        """What to call it: its directory's name."""
        return self.directory.absolute().name

    @property
    def decimal(self) -> bool:
        """Whether its sizes are shown in MB: its budget is a whole number of them."""
        budget = self.result.budget_bytes
        return budget is not None and budget % 10**6 == 0

    @cached_property
    def plan(self) -> MemoryPlan:
        """The memory of its program, node by node."""
        return plan_memory(self.program)

    @property
    def timed_step(self) -> int:
        """The step whose times are shown: the median one, as in the record; the first if none was finished."""
        times = [step.step_s for step in self.result.steps if step.step_s is not None]
        return times.index(median_low(times)) if times else 0

    def events(self, step: int | None = None) -> Iterator[Event]:
        """Yield what every executed node did, in order, of all steps or of one, one event in memory at a time.

        Raises:
            InputError: The file cannot be read, is damaged, or is of another program.
        """
        path, nodes = self.directory / EVENTS_FILE, self.program.nodes
        latest_s = 0.0
        for event in read_events(path):
            if event.node >= len(nodes) or nodes[event.node].op != event.op:
                raise InputError(
                    f"{path} is not of the program beside it: step {event.step} has {shown(event.op)} as node "
                    f"{event.node}; report on a run's own directory"
                )
            if event.start_s < latest_s:
                raise InputError(f"{path} is damaged: step {event.step} has node {event.node} before the one before it")
            latest_s = event.start_s
            if step is None or event.step == step:
                yield event


def open_run(directory: Path) -> RunFiles:
    """Open the directory that ``memsim run`` left behind.

    Raises:
        InputError: It is no directory of a run, or a file in it cannot be read or is damaged.
    """
    if not (directory / RESULT_FILE).is_file():
        raise InputError(f"{directory} is not a run: it has no {RESULT_FILE}; give a directory that `memsim run` wrote")
    result = read_result(directory / RESULT_FILE)
    if result.source != "measured":
        raise InputError(f"{directory / RESULT_FILE} is a {result.source} record; give the directory of a real run")
    return RunFiles(directory, result, load_program(directory / PROGRAM_FILE).program)
