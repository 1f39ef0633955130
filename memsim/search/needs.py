"""What a process needs beside its working set, and so whether it fits a budget."""

from collections.abc import Callable
from dataclasses import dataclass

from memsim.simulator.device import Numbers, Rule
from memsim.simulator.walk import footprint


@dataclass(frozen=True, slots=True)
class Needs:
    """How the budget is counted.

    Attributes:
        footprint: From a working set, in bytes, what the limit is held against.
        node_bytes: What each node of the programs takes beside it.
        with_files: Whether the limit counts file pages too, so that room for them must be left.
    """

    footprint: Callable[[int], int]
    node_bytes: int
    with_files: bool

    def total(self, peak_bytes: int, file_floor_bytes: int, n_nodes: int) -> int:
        """Return the smallest budget for a plan of this peak, file floor and number of nodes."""
        files_bytes = file_floor_bytes if self.with_files else 0
        return self.footprint(peak_bytes) + self.node_bytes * n_nodes + files_bytes


def capped_process(baseline_bytes: int, node_bytes: int) -> Needs:
    """Return the needs of a worker in a group: the interpreter counts, its program's nodes, and file pages."""
    return Needs(lambda peak: baseline_bytes + peak, node_bytes, with_files=True)


def device_app(numbers: Numbers, rule: Rule) -> Needs:
    """Return the needs of an app on a device, by the device's own rule."""
    return Needs(lambda peak: footprint(numbers, rule, peak), 0, with_files=False)
