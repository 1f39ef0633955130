"""Parsed JSON into dataclasses, checked field by field: the reader of every record that comes from a file."""

import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from memsim.errors import InputError, UsageError
from memsim.json_file import shown

_MAX_TEXT = 4096
_MAX_INTEGER = (1 << 63) - 1

T = TypeVar("T", bound=object)


def decode(kind: type[T], value: object, where: str) -> T:
    """Build the dataclass ``kind`` from parsed JSON, checking every field against its annotation.

    Integers must be non-negative and below 2^63, floats finite, strings at most 4,096 characters. What is in seconds,
    by its name (``step_s``, ``seconds``), is not negative either, nor is anything in it.

    Args:
        kind: A dataclass whose fields are numbers, strings, paths, literals, tuples, dicts, dataclasses or optional.
        value: What ``parse_json`` returned.
        where: What the error messages call it.

    Raises:
        InputError: A field is missing, unknown, or not of its type.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object, not {shown(value)}")
    hashable: Any = kind  # mypy does not accept type[T] as an argument of a cached function
    known = _annotated(hashable)
    for key in value:
        if key not in known:
            raise InputError(f"{where} has an unknown field {shown(key)}; a newer memsim may have written it")
    arguments = {}
    for name, (spec, hint) in known.items():
        if name in value:
            decoded = _decode(hint, value[name], f"{where}: {name}")
            if _in_seconds(name):
                _refuse_negative(decoded, f"{where}: {name}")
            if spec.init:
                arguments[name] = decoded
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise InputError(f"{where} has no field {name!r}")
    try:
        return kind(**arguments)
    except UsageError as error:  # of a dataclass that checks its own values
        raise InputError(f"{where}: {error}") from None


@cache
def _annotated(kind: type) -> dict[str, tuple[Field[Any], Any]]:
    hints = get_type_hints(kind)
    return {spec.name: (spec, hints[spec.name]) for spec in fields(kind)}


def _decode(hint: Any, value: object, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        if len(scalars := set(arguments) - {NoneType}) > 1:
            return _decode_either(scalars, value, where)
        return _decode(next(kind for kind in arguments if kind is not NoneType), value, where)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where} must be one of {', '.join(map(str, arguments))}, not {shown(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where} must be a list, not {shown(value)}")
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        return dict(_decode_items(arguments[1], value, where))
    return _decode_scalar(hint, value, where) if hint in _SCALARS else decode(hint, value, where)


def _decode_either(kinds: set[Any], value: object, where: str) -> Any:
    """Decode what may be of several kinds of scalar, or a list of texts: as the one that it is in JSON."""
    kind: Any = tuple[str, ...] if isinstance(value, list) else type(value)
    if kind not in kinds:
        raise InputError(f"{where} must be a number, true, false, a text or a list of texts, not {shown(value)}")
    return _decode(kind, value, where)


def _decode_items(hint: Any, value: object, where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object, not {shown(value)}")
    for key, item in value.items():
        name = _decode_scalar(str, key, f"{where} key")
        decoded = _decode(hint, item, f"{where}[{shown(key)}]")
        if _in_seconds(name):
            _refuse_negative(decoded, f"{where}[{shown(key)}]")
        yield name, decoded


def _in_seconds(name: str) -> bool:
    return name == "seconds" or name.endswith("_s") and not name.endswith("_per_s")


def _refuse_negative(value: object, where: str) -> None:
    """Refuse a negative number in what was decoded."""
    if isinstance(value, int | float) and value < 0:
        raise InputError(f"{where} must be a time of 0 s or more, not {shown(value)}")
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            _refuse_negative(item, f"{where}[{index}]")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_negative(item, f"{where}[{shown(key)}]")
    if is_dataclass(value):
        for spec in fields(value):
            _refuse_negative(getattr(value, spec.name), f"{where}: {spec.name}")


_SCALARS = {
    bool: "true or false",
    int: "an integer from 0 to 2^63 - 1",
    float: "a finite number",
    str: f"a string of at most {_MAX_TEXT} characters",
    Path: f"a path of at most {_MAX_TEXT} characters",
}


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    # Exact types, not isinstance: bool is a subclass of int, and `true` where bytes belong must not count as one byte.
    exact = type(value)
    if kind is float and exact in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if exact is kind and (
        kind is bool or (kind is int and 0 <= value <= _MAX_INTEGER) or (kind is str and len(value) <= _MAX_TEXT)
    ):
        return value
    if kind is Path and exact is str and 0 < len(value) <= _MAX_TEXT and "\0" not in value:
        return Path(value)
    raise InputError(f"{where} must be {_SCALARS[kind]}, not {shown(value)}")
