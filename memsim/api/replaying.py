"""``memsim.replay``: a recorded run, or any memray capture, on a device that is not here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memsim.api.simulation import MAX_STEPS, Survives, check_limits
from memsim.errors import UsageError
from memsim.results import Result
from memsim.simulator.device_file import find_device
from memsim.simulator.forked import read_captures
from memsim.simulator.modes import STEPS, Mode
from memsim.simulator.record import replayed_result
from memsim.simulator.recordings.capture import Capture, capture_record
from memsim.simulator.recordings.recording import Recording, read_recording
from memsim.simulator.simulate import Simulation, simulate


@dataclass(frozen=True, slots=True)
class ReplayedRun(Survives):
    """A recorded run on a device.

    Attributes:
        result: Its record, as ``memsim replay --json`` writes it; bytes and seconds by the device's nominal numbers.
        simulation: The same with bands, for every limit and node.
        recording: What was recorded.
        mode: How the app runs, which decides the limit.
    """

    result: Result
    simulation: Simulation
    recording: Recording
    mode: Mode

    def held_where_killed(self) -> tuple[tuple[str, int], ...]:
        """Return the values that are live at the node that breaks the limit, and their bytes; none if it fits."""
        node = self.simulation.survival[self.mode].killed_at
        if node is None:
            return ()
        position = next(at for at, item in enumerate(self.recording.nodes) if item.index == node.index)
        return self.recording.held_at(position)


@dataclass(frozen=True, slots=True)
class ReplayedCapture(Survives):
    """The memory of any Python program on a device; a capture says nothing of times.

    Attributes:
        record: Plain data, as ``memsim replay --json`` writes it.
        simulation: Memory with bands, for every limit.
        capture: What was captured.
        mode: How the app runs, which decides the limit.
    """

    record: dict[str, Any]
    simulation: Simulation
    capture: Capture
    mode: Mode


def replay(
    recorded: Path | str | Sequence[Path | str],
    *,
    device: str = "iphone-15-pro-max",
    budget_bytes: int | None = None,
    mode: Mode = "foreground",
    steps: int | None = None,
    advised: bool | None = None,
) -> ReplayedRun | ReplayedCapture:
    """Replay what was recorded on a device.

    Args:
        recorded: The directory of a ``memsim run --record``, or a memray capture of any Python program; or several
            captures, one a process, of one run of it that followed its forks.
        device: The name of a device, or the path of a device file.
        budget_bytes: A limit below the device's; None takes the device's.
        mode: How the app runs: its limit.
        steps: Optimizer steps in a row, of a recorded run alone, in which the device gets hot; None is 20.
        advised: Whether a page-in of a recorded run, and only of one, asks for its file in advance, as None means, or
            faults its way through.

    Returns:
        A ``ReplayedRun`` of a directory, a ``ReplayedCapture`` of a file or several.

    Raises:
        UsageError: A value that can never work.
        InputError: The recording, the capture or the device cannot be read, or is damaged.
    """
    check_limits(budget_bytes, mode)
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"--steps {steps} must be from 1 to {MAX_STEPS}")
    target = find_device(device)
    paths = [Path(recorded)] if isinstance(recorded, Path | str) else [Path(path) for path in recorded]
    if not paths:
        raise UsageError("nothing to replay: name the directory of a recorded run, or a memray capture")
    directory = next((path for path in paths if path.is_dir()), None)
    if directory is not None:
        if len(paths) > 1:
            raise UsageError(f"{directory} is a directory: replay one recorded run, or the captures of one program")
        recording = read_recording(directory)
        asked = True if advised is None else advised
        simulation = simulate(recording.trace(), target, steps or STEPS, budget_bytes, asked)
        return ReplayedRun(replayed_result(recording, simulation, mode, budget_bytes), simulation, recording, mode)
    for option, value in {"--steps": steps, "--paging": advised}.items():
        if value is not None:
            raise UsageError(
                f"{option} is for recorded runs; {paths[0]} is a capture, of which only memory is known: leave it out"
            )
    capture = read_captures(paths)
    simulation = simulate(capture.trace(), target, 1, budget_bytes)
    return ReplayedCapture(capture_record(capture, simulation, mode, budget_bytes), simulation, capture, mode)
