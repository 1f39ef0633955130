"""Seconds of repeated calls on a noisy machine: median and spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one repeated call.

    Attributes:
        low_s: The tenth percentile.
        high_s: The ninetieth.
        repeats: How many were timed.
    """

    median_s: float
    low_s: float
    high_s: float
    repeats: int

    @property
    def spread(self) -> float:
        """(high - low) / median."""
        return (self.high_s - self.low_s) / self.median_s


def summarise(seconds: Sequence[float]) -> Timing:
    """Return median and percentiles of at least one time."""
    ordered, last = sorted(seconds), len(seconds) - 1
    return Timing(
        median_s=median(ordered),
        low_s=ordered[round(0.1 * last)],
        high_s=ordered[round(0.9 * last)],
        repeats=len(ordered),
    )
