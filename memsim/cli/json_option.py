"""The options that name a file to write, checked first: a long command does not end without a place for its answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from memsim.errors import InputError

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def json_option(what: str) -> Callable[[_Decorated], _Decorated]:
    """Return the option ``--json``, which every command has; ``what`` it writes stands in the help."""
    return click.option(
        "--json",
        "json_path",
        metavar="PATH|-",
        callback=_writable,
        help=f"Write {what} to PATH, or to stdout.",
    )


def file_option(name: str, what: str) -> Callable[[_Decorated], _Decorated]:
    """Return an option that names a file to write; ``what`` is its help."""
    return click.option(name, type=click.Path(path_type=Path), metavar="FILE", callback=_writable, help=what)


def _writable(context: click.Context, option: click.Parameter, path: str | Path | None) -> str | Path | None:
    """Refuse a path whose directory is not there.

    Raises:
        InputError: So is this one.
    """
    if path is not None and str(path) != "-" and not Path(path).absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: its directory does not exist")
    return path
