"""Reading single fields of an untrusted ``config.json``."""

from collections.abc import Mapping
from typing import Any

from memsim.errors import InputError
from memsim.json_file import shown


def integer(data: Mapping[str, Any], key: str, where: str) -> int:
    """Return the positive integer ``data[key]``.

    Raises:
        InputError: It is missing or anything else.
    """
    value = data.get(key)
    if value is None:
        raise InputError(f"{where} has no {key!r}")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise InputError(f"{where}: {key!r} must be a positive integer, not {shown(value)}")
    return value


def number(data: Mapping[str, Any], key: str, where: str, low: float, high: float) -> float:
    """Return the number ``data[key]``, which is from ``low`` to ``high``.

    Raises:
        InputError: It is missing or anything else.
    """
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{where}: {key!r} must be a number from {low:g} to {high:g}, not {shown(value)}")
    return float(value)


def boolean(data: Mapping[str, Any], key: str, where: str) -> bool:
    """Return ``data[key]``, false if it is missing or null.

    Raises:
        InputError: It is neither true nor false.
    """
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{where}: {key!r} must be true or false, not {shown(value)}")
    return bool(value)


def mapping(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """Return the object ``data[key]``, an empty one if it is missing or null.

    Raises:
        InputError: It is no object.
    """
    value = data.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"{where}: {key!r} must be an object, not {shown(value)}")
    return value or {}
