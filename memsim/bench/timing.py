"""Timing on a noisy machine: medians and spread of interleaved repetitions."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one repeated call.

    Attributes:
        low_s: The tenth percentile.
        high_s: The ninetieth.
    """

    median_s: float
    low_s: float
    high_s: float

    @property
    def spread(self) -> float:
        """(high - low) / median."""
        return (self.high_s - self.low_s) / self.median_s


def time_interleaved(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Time every call ``repeats`` times, one after the other in each round, after a round of warming up.

    Interleaving lets a neighbour's noise hit all calls alike, so that their ratios hold.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: _summary(sorted(values)) for name, values in seconds.items()}


def _summary(ordered: list[float]) -> Timing:
    last = len(ordered) - 1
    return Timing(median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)])
