"""A recorded run's own program on devices that are not here."""

from collections.abc import Sequence
from dataclasses import dataclass

from memsim.reports.run_files import RunFiles
from memsim.simulator.device import Device
from memsim.simulator.simulate import Simulation, simulate
from memsim.simulator.trace import trace_program


@dataclass(frozen=True, slots=True)
class Verdict:
    """A run's program, simulated on a device for as many steps as the run was recorded for."""

    run: RunFiles
    simulation: Simulation


def verdicts(runs: Sequence[RunFiles], devices: Sequence[Device]) -> list[Verdict]:
    """Simulate every run on every device, as the runs were planned here (threads of this machine)."""
    found = []
    for run in runs:
        trace = trace_program(run.program, run.plan) if devices else None
        found += [Verdict(run, simulate(trace, one, max(len(run.result.steps), 1))) for one in devices if trace]
    return found
