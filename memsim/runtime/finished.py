"""The runs of this process that ended with a record, told to whoever asks: how the pytest plugin sees a test's runs."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsim.runtime.config import RunConfig
    from memsim.runtime.outcome import RunOutcome

FINISHED: "list[Callable[[RunConfig, RunOutcome], None]]" = []
"""Called with every such run."""
