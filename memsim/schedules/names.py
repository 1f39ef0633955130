"""The names of schedules, which the command line and settings know before anything is lowered."""

from memsim.schedules.choices import SCHEDULES
from memsim.schedules.zeroth_order import METHODS

SCHEDULE_NAMES: tuple[str, ...] = (*SCHEDULES, *METHODS)

AUTO = "auto"
"""The name of a schedule that was searched for."""
