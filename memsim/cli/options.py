"""Options that several commands have: what they take is said once, what they are for stands with the command."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from memsim.cli import complete
from memsim.models.presets import PRESETS
from memsim.schedules.optimizers import STATE_PER_PARAMETER

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
Decorator = Callable[[_Decorated], _Decorated]

NO_WEIGHTS = f"A preset ({', '.join(PRESETS)}), a pack, or a directory with a config.json; no weights are read."


def model_option(what: str, default: str = "qwen2.5-0.5b", metavar: str = "NAME|DIR") -> Decorator[Any]:
    """Return ``--model``."""
    return click.option("--model", default=default, metavar=metavar, shell_complete=complete.models, help=what)


def models_option(what: str, default: str) -> Decorator[Any]:
    """Return ``--models``, a list with commas."""
    return click.option("--models", default=default, metavar="LIST", shell_complete=complete.model_list, help=what)


def device_option(what: str = "See `memsim devices`.", default: str = "iphone-15-pro-max") -> Decorator[Any]:
    """Return ``--device``."""
    metavar, names = "NAME|FILE", complete.devices
    return click.option("--device", default=default, metavar=metavar, shell_complete=names, help=what)


def devices_option(what: str, default: Sequence[str] = ()) -> Decorator[Any]:
    """Return ``--device`` that may be repeated, as the parameter ``devices``."""
    metavar, names = "NAME|FILE", complete.devices
    return click.option(
        "--device", "devices", multiple=True, default=default, metavar=metavar, shell_complete=names, help=what
    )


def schedule_option(names: Sequence[str], default: str, what: str) -> Decorator[Any]:
    """Return ``--schedule``, one of ``names``."""
    return click.option("--schedule", type=click.Choice(names), default=default, help=what)


def number_option(name: str, default: int, what: str, least: int | None = None, metavar: str = "N") -> Decorator[Any]:
    """Return an option that takes a whole number, ``least`` at least; without one the command checks it."""
    kind = int if least is None else click.IntRange(least)
    return click.option(name, type=kind, default=default, metavar=metavar, help=what)


def compute_option(what: str) -> Decorator[Any]:
    """Return ``--compute``."""
    return click.option("--compute", type=click.Choice(["auto", "f32", "bf16"]), default="auto", help=what)


def path_option(name: str, what: str, metavar: str = "FILE") -> Decorator[Any]:
    """Return an option that names a file or directory."""
    return click.option(name, type=click.Path(path_type=Path), metavar=metavar, help=what)


def updates_options(command: _Decorated) -> _Decorated:
    """Add what decides of updates: ``--optimizer`` and ``--accumulate``."""
    optimizers = click.Choice(list(STATE_PER_PARAMETER))
    accumulate = number_option("--accumulate", 1, "Sequences whose gradients are summed in a step.")
    optimizer = click.option("--optimizer", type=optimizers, default="adamw", help="What updates what is trained.")
    return optimizer(accumulate(command))  # type: ignore[no-any-return]
