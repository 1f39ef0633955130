"""JSON from untrusted files: bounded, strict UTF-8, no duplicate keys, and one-line errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.reading import open_regular, read_bytes

_LONGEST_SHOWN = 80


def shown(value: object) -> str:
    """Return an untrusted ``value`` for an error message: on one line, printable, at most 80 characters."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(duplicate)} appears twice")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse strict JSON (no NaN, no Infinity).

    Args:
        text: Untrusted; bytes are UTF-8.
        where: What error messages call its origin.

    Raises:
        InputError: Not UTF-8, not JSON, nested too deeply, or a key that appears twice.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode()
        return json.loads(decoded, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError:
        raise InputError(f"{where} is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {' '.join(str(error).split())[:200]}") from None


class Repeated:
    """The value of a key that an object has twice, with different values: it is none that anybody could use."""

    def __repr__(self) -> str:
        return "two different values"


def _last_or_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        data[key] = value if data.get(key, value) == value else Repeated()
    return data


def read_foreign(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read the JSON object in a file of another program, of which we use a part.

    What other parts hold is their own: NaN and infinity are floats there, and a key that appears twice has a value that
    no check of a field that is used will take (`Repeated`).

    Raises:
        InputError: Unreadable, over ``max_bytes``, not UTF-8, not JSON, nested too deeply, or no object.
    """
    text = read_bytes(path, max_bytes, "such a file")
    try:
        data = json.loads(text.decode(), object_pairs_hook=_last_or_repeated)
    except RecursionError:
        raise InputError(f"{path} is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(data).__name__}")
    return data


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        InputError: Anything that ``parse_json`` refuses, or not an object.
    """
    data = parse_json(text, where)
    if not isinstance(data, dict):
        raise InputError(f"{where} must hold a JSON object, not a {type(data).__name__}")
    return data


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read the JSON object in ``path``.

    Raises:
        InputError: Unreadable, over ``max_bytes``, or anything that ``parse_object`` refuses.
    """
    text = read_bytes(path, max_bytes, "such a file")
    return parse_object(text, str(path))


def json_lines(path: Path, max_line_bytes: int, what: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, parsed JSON) for each line of a file, untrusted, one line in memory at a time.

    Args:
        path: A file of one JSON value a line.
        max_line_bytes: A longer line is refused.
        what: What error messages call the content of a line (``an event``).

    Raises:
        InputError: It cannot be read, or a line is too long, cut short (its run was killed) or not JSON; the message
            has the line number. The lines before it have been yielded by then.
    """
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(max_line_bytes + 1):
                number += 1
                where = f"{path} line {number}"
                if len(line) > max_line_bytes:
                    raise InputError(f"{where} is longer than {max_line_bytes} bytes, too long for {what}")
                if not line.endswith(b"\n"):
                    raise InputError(
                        f"{where} is cut short: the run that wrote it was killed; delete the line to read the rest"
                    )
                yield where, parse_json(line, where)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
