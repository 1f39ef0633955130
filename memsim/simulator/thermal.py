"""Heat: full speed for a while, then slower and slower down to a floor."""

from dataclasses import dataclass
from math import inf

from memsim.simulator.device import Numbers


@dataclass(frozen=True, slots=True)
class Heat:
    """How much of full speed is left after a time at work.

    Attributes:
        hold_s: Seconds at full speed.
        ramp_s: Seconds after that in which the speed falls linearly.
        floor: Share of full speed that is left then, for good.
    """

    hold_s: float
    ramp_s: float
    floor: float

    @classmethod
    def of(cls, numbers: Numbers) -> "Heat":
        """Return the curve of a device."""
        return cls(numbers.thermal_hold_s, numbers.thermal_ramp_s, numbers.thermal_floor)

    def speed(self, at_s: float) -> float:
        """Return the share of full speed after ``at_s`` seconds of work."""
        if at_s < self.hold_s:
            return 1.0
        ramped = (at_s - self.hold_s) / self.ramp_s if self.ramp_s else inf
        return max(self.floor, 1.0 - (1.0 - self.floor) * min(ramped, 1.0))

    def step_times(self, cool_s: float, hot_s: float, n_steps: int) -> list[float]:
        """Return the seconds of each of ``n_steps`` steps in a row, the first one on a cool device.

        Args:
            cool_s: A step at full speed.
            hot_s: A step at the floor.
            n_steps: How many.
        """
        times, clock_s = [], 0.0
        for _ in range(n_steps):
            start_s, left = clock_s, 1.0
            while left > 1e-12:
                step_s = self._step_s(clock_s, cool_s, hot_s)
                if clock_s >= self.hold_s + self.ramp_s or self.floor >= 1.0:
                    slice_s = left * step_s
                elif clock_s < self.hold_s:
                    slice_s = min(left * step_s, self.hold_s - clock_s)
                else:
                    slice_s = min(left * step_s, self.ramp_s / 200)
                left -= slice_s / step_s if step_s else left
                clock_s += slice_s
            times.append(clock_s - start_s)
        return times

    def _step_s(self, at_s: float, cool_s: float, hot_s: float) -> float:
        """Return how long a step would take at the speed of this moment."""
        if self.floor >= 1.0:
            return cool_s
        slowed = (1 / self.speed(at_s) - 1) / (1 / self.floor - 1)
        return cool_s + slowed * (hot_s - cool_s)
