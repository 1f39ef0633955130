"""What is refused of a run on this machine, before any model is looked at; `settings` checks values by themselves."""

from pathlib import Path

import psutil

from memsim.cap.processors import available_threads
from memsim.errors import InputError, UsageError
from memsim.files import require_disk
from memsim.runtime.config import RunConfig
from memsim.units import format_bytes


def check_new(config: RunConfig) -> None:
    """Check the files that a new run names; a resumed one has their tokens.

    Raises:
        InputError: ``out`` exists, or a text does not.
    """
    if config.out is not None and config.out.exists():
        raise InputError(f"--out {config.out} exists; choose a directory that does not")
    for path in (config.data, config.eval_data):
        if path is not None and not path.is_file():
            raise InputError(f"no text file at {path}")


def check(config: RunConfig, out: Path) -> None:
    """Check settings against this machine.

    Raises:
        UsageError: More memory or processors than there are.
        InputError: The scratch directory, or ``out`` in its place, cannot serve.
    """
    ram = psutil.virtual_memory().total
    if config.budget_bytes > ram:
        raise UsageError(
            f"--budget {format_bytes(config.budget_bytes, config.decimal)} is above this machine's "
            f"{format_bytes(ram, config.decimal)} of RAM"
        )
    if config.threads > (available := available_threads()):
        raise UsageError(f"--threads {config.threads} is above the {available} processors of this machine")
    if config.scratch is not None and not config.scratch.is_dir():
        raise InputError(f"the scratch directory {config.scratch} does not exist; create it or choose another")
    require_disk(config.scratch or out, "the scratch")
