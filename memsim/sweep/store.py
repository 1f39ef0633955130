"""The rows of a sweep in a SQLite file, each written when its point is finished. Untrusted when read."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from memsim.errors import InputError
from memsim.json_decode import decode
from memsim.json_file import shown
from memsim.printable import printable
from memsim.staged_directory import locked
from memsim.sweep.row import Row

SCHEMA: Final = "memsim.sweep/1"

APPLICATION_ID: Final = 0x6D656D73
"""``mems``: what tells these files from other SQLite databases (``PRAGMA application_id``)."""

_TYPES = {str: "TEXT", int: "INTEGER", float: "REAL", bool: "INTEGER"}
_FIGURES = tuple(spec.name for spec in fields(Row) if spec.name != "record")


def _column(name: str, hint: Any) -> str:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    kind = _TYPES.get(kinds[0], "TEXT")
    optional = type(None) in get_args(hint)
    return f"{name} {kind}" + (" PRIMARY KEY" if name == "key" else "" if optional else " NOT NULL")


TABLE: Final = f"CREATE TABLE points ({', '.join(_column(*item) for item in get_type_hints(Row).items())})"


class Store:
    """An open file of rows."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def add(self, row: Row) -> None:
        """Write a row in place of an earlier one of the same point.

        Raises:
            InputError: It cannot be written.
        """
        marks = ", ".join("?" for _ in fields(Row))
        with _explained(self._path, "write"), self._connection:
            self._connection.execute(f"INSERT OR REPLACE INTO points VALUES ({marks})", astuple(row))

    def statuses(self) -> dict[str, str]:
        """Return key -> status of every row.

        Raises:
            InputError: The file is damaged.
        """
        with _explained(self._path, "read"):
            return dict(self._connection.execute("SELECT key, status FROM points"))

    def rows(self, keys: Iterable[str]) -> Iterator[Row]:
        """Yield the rows of points, but for their records, in the order of ``keys``; what has no row is left out.

        Raises:
            InputError: The file is damaged.
        """
        query = f"SELECT {', '.join(_FIGURES)} FROM points WHERE key = ?"
        for key in keys:
            with _explained(self._path, "read"):
                values = self._connection.execute(query, (key,)).fetchone()
            if values is not None:
                yield _row(dict(zip(_FIGURES, values, strict=True)), f"{self._path} row {shown(key)}")


def _row(plain: dict[str, Any], where: str) -> Row:
    if plain["fits"] in (0, 1):
        plain["fits"] = bool(plain["fits"])
    return decode(Row, plain | {"record": None}, where)


@contextmanager
def open_store(path: Path) -> Iterator[Store]:
    """Open the file of a sweep, new or of an earlier one, for this process alone.

    Raises:
        InputError: Another process writes it, it is something else, or it cannot be written.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: its directory does not exist")
    with locked(path), _explained(path, "open"), closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        _check(connection, path)
        yield Store(connection, path)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Make the table in a new file, or see that it is there and nothing else."""
    found = connection.execute("SELECT type, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if not found and not application:
        with connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(TABLE)
    elif application != APPLICATION_ID or found != [("table", TABLE)]:
        raise InputError(f"{path} does not hold a sweep of this version of memsim; choose another file with --out")


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(f"cannot {what} {path}: {printable(error)}") from error
