"""JSON objects from untrusted files: bounded, strict UTF-8, no duplicate keys, and one-line errors."""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from memsim.errors import InputError
from memsim.units import format_bytes

_LONGEST_QUOTE = 80


def quoted(text: object) -> str:
    """Return untrusted ``text`` for an error message: on one line, printable, at most 80 characters."""
    shown = ascii(text)
    return shown if len(shown) <= _LONGEST_QUOTE else f"{shown[: _LONGEST_QUOTE - 3]}..."


def open_regular(path: Path) -> BinaryIO:
    """Open an untrusted ``path`` for reading, refusing devices and pipes (on which a read would hang).

    Raises:
        InputError: It is missing, unreadable or not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"cannot read {path}: it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {quoted(duplicate)} appears twice")
    return data


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        text: UTF-8 bytes, untrusted.
        where: What error messages call its origin.

    Raises:
        InputError: Not UTF-8, not JSON, nested too deeply, a duplicate key, or not an object.
    """
    try:
        data = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise InputError(f"{where} is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise InputError(f"{where} must hold a JSON object, not a {type(data).__name__}")
    return data


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read the JSON object in ``path``.

    Raises:
        InputError: Unreadable, over ``max_bytes``, or anything that ``parse_object`` refuses.
    """
    try:
        with open_regular(path) as file:
            text = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if len(text) > max_bytes:
        raise InputError(f"{path} is larger than the {format_bytes(max_bytes)} that such a file may have")
    return parse_object(text, str(path))
