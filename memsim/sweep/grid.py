"""Grid files: TOML, untrusted; every combination of their lists is a point.

::

    mode = "simulate"
    models = ["qwen2.5-0.5b"]
    seq_lens = [128, 256]
    schedules = ["mebp", "tiled"]
    devices = ["iphone-15-pro-max"]

    [settings]
    steps = 3
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

from memsim.errors import InputError, UsageError
from memsim.json_decode import decode
from memsim.json_file import shown
from memsim.runtime.settings import BY_OPTION
from memsim.toml_file import read_toml
from memsim.units import parse_bytes
from memsim.weights.cache import identifier

Mode = Literal["plan", "simulate", "run"]
Setting = str | int | float | bool

MODES: tuple[Mode, ...] = get_args(Mode)
MAX_POINTS = 10_000

_MAX_BYTES = 256 << 10
_MAX_ITEMS = 1000
_MAX_TEXT = 4096

RESERVED = frozenset(
    ("model", "seq_len", "lora_rank", "schedule", "budget", "device", "json", "out", "scratch", "plan", "emit", "plot")
    + ("resume", "allow_different_bits", "save_baseline", "record", "help")
)
"""Options that lists of the grid, or the sweep itself, decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The lists of a grid file; an empty one leaves the command its default.

    Attributes:
        mode: The command of every point.
        budgets: As people write them (``1GB``).
    """

    mode: Mode
    models: tuple[str, ...] = ()
    seq_lens: tuple[int, ...] = ()
    lora_ranks: tuple[int, ...] = ()
    schedules: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


AXES: Mapping[str, str] = {
    "models": "model",
    "seq_lens": "seq_len",
    "lora_ranks": "lora_rank",
    "schedules": "schedule",
    "budgets": "budget",
    "devices": "device",
}
"""List of the grid -> what each of its items is to a point."""


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration.

    Attributes:
        mode: ``plan``, ``simulate`` or ``run``.
        axes: Its items of the grid's lists (``seq_len`` -> 128); what has no list is not there.
        settings: Options that all points of the grid share.
    """

    mode: Mode
    axes: Mapping[str, str | int]
    settings: Mapping[str, Setting]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command line after ``memsim``; values cannot be taken for options."""
        options = [_option(name, value) for name, value in (*self.axes.items(), *self.settings.items())]
        return (self.mode, *options)

    @property
    def budget_bytes(self) -> int | None:
        """The point's budget."""
        budget = self.axes.get("budget")
        return None if budget is None else parse_bytes(str(budget))

    @property
    def key(self) -> str:
        """What identifies the point: a hash of all that it was asked for, sizes in bytes."""
        axes = dict(self.axes) | ({"budget": self.budget_bytes} if "budget" in self.axes else {})
        text = json.dumps([self.mode, axes, dict(self.settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _option(name: str, value: Setting) -> str:
    option = f"--{name.replace('_', '-')}"
    return option if value is True else f"{option}={value}"


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid file: its points in the order of its lists, the first list outermost."""

    axes: Axes
    points: tuple[Point, ...]

    @property
    def varying(self) -> tuple[str, ...]:
        """What points differ by: the lists with more than one item, by what an item is to a point."""
        return tuple(item for name, item in AXES.items() if len(getattr(self.axes, name)) > 1)


def read_grid(path: Path, options: Mapping[str, Collection[str]]) -> Grid:
    """Read a grid file and check it.

    Args:
        path: The file.
        options: Mode -> names of the options that its command takes, with underscores.

    Raises:
        InputError: It cannot be read, breaks a rule of the format, or has more than 10,000 points.
    """
    plain = read_toml(path, _MAX_BYTES, "a grid file")
    where = str(path)
    settings = _settings(plain.pop("settings", {}), where)
    axes = decode(Axes, plain, where)
    _check_options(axes, settings, options[axes.mode], where)
    if axes.mode == "run":
        settings = {"threads": 1} | settings  # runs beside each other: memsim run itself would take every processor
    items = {item: _items(axes, name, where) for name, item in AXES.items()}
    items = {item: values for item, values in items.items() if values}
    count = prod(map(len, items.values()))
    if count > MAX_POINTS:
        raise InputError(f"{where} has {count:,} points, more than {MAX_POINTS:,}; divide it")
    points = [Point(axes.mode, dict(zip(items, values, strict=True)), settings) for values in product(*items.values())]
    _check_twice(points, where)
    return Grid(axes, tuple(points))


def _settings(plain: object, where: str) -> dict[str, Setting]:
    """Return the settings as options take them: lists as their items with commas."""
    if not isinstance(plain, dict):
        raise InputError(f"{where}: settings must be a table, not {shown(plain)}")
    settings = {name: _setting(value, f"{where}: settings.{shown(name)}") for name, value in sorted(plain.items())}
    return {name: _from_here(str(value)) if _is_path(name, value) else value for name, value in settings.items()}


def _is_path(name: str, value: Setting) -> bool:
    """Return whether a setting names a file: by what the setting is, not by what happens to lie here."""
    described = BY_OPTION.get(f"--{name.replace('_', '-')}")
    return isinstance(value, str) and (
        (described is not None and described.kind is Path) or (name == "task" and value.endswith(".toml"))
    )


def _setting(value: Any, where: str) -> Setting:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = ",".join(value)
    if value is False:
        raise InputError(f"{where} is false, which an option cannot be told; leave it out")
    if not isinstance(value, str | int | float) or len(str(value)) > _MAX_TEXT or "\0" in str(value):
        raise InputError(f"{where} must be a number, true, a text or a list of texts, not {shown(value)}")
    setting: Setting = value
    return setting


def _from_here(text: str) -> str:
    """Return the absolute path of a file, since points run in another directory."""
    return str(Path(text).absolute()) if text else text


def _check_options(axes: Axes, settings: Mapping[str, Setting], known: Collection[str], where: str) -> None:
    for name, item in AXES.items():
        if getattr(axes, name) and item not in known:
            option = f"--{item.replace('_', '-')}"
            raise InputError(f"{where}: memsim {axes.mode} has no {option}; leave out {name}")
    allowed = sorted(set(known) - RESERVED)
    for name in settings:
        if name not in allowed:
            raise InputError(f"{where}: settings.{shown(name)} is no setting of mode {axes.mode}: {', '.join(allowed)}")
    if axes.mode == "run" and not axes.budgets:
        raise InputError(f'{where}: runs are capped; give budgets, such as budgets = ["1GB"]')


def _items(axes: Axes, name: str, where: str) -> tuple[str | int, ...]:
    values: tuple[str | int, ...] = getattr(axes, name)
    if len(values) > _MAX_ITEMS:
        raise InputError(f"{where}: {name} has {len(values):,} items, more than {_MAX_ITEMS:,}")
    if "" in values:
        raise InputError(f"{where}: {name} has an empty item")
    for budget in values if name == "budgets" else ():
        try:
            parse_bytes(str(budget))
        except UsageError as error:
            raise InputError(f"{where}: budgets: {error}") from None
    if name == "models":
        return tuple(identifier(value) for value in map(str, values))
    if name == "devices":
        return tuple(_from_here(str(value)) if str(value).endswith(".toml") else value for value in values)
    return values


def _check_twice(points: Collection[Point], where: str) -> None:
    seen: dict[str, Point] = {}
    for point in points:
        if (twin := seen.setdefault(point.key, point)) is not point:
            differing = [str(value) for name, value in point.axes.items() if value != twin.axes[name]]
            raise InputError(f"{where} has a point twice: {shown(' '.join(point.arguments))} {' '.join(differing)}")
