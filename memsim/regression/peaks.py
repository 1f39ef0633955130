"""The stored peak of a test: a file each, by the test's name, and what is over it."""

import json
import re
from pathlib import Path
from typing import Final

from memsim.errors import InputError, UsageError
from memsim.files import write_text
from memsim.json_file import read_object, shown
from memsim.units import MIB, format_bytes

SCHEMA: Final = "memsim.test/2"
ERROR_BYTES = MIB
"""By how much two peaks of the same test may differ."""
_MAX_BYTES = 1 << 20
_LONGEST = 200  # file systems allow names of 255 bytes, and `.json` and a temporary name come on top
_UNSAFE = re.compile(r"[^\w.\-\[\]=+,@ ]", re.ASCII)


def file_of(test: str, name: str | None, parameters: str | None) -> str:
    """Return the path of a test's file inside the directory of baselines.

    Args:
        test: The node id.
        name: What the marker says; None takes the node id.
        parameters: The id of the parameters, where the test has any; part of the node id already.

    Raises:
        UsageError: The name leads out of the directory, or is too long.
    """
    if name is None:
        path, _, inside = test.partition("::")
        parts = [*filter(None, path.split("/")), *_split(inside)]  # outside of the root directory it has no path
    else:
        parts = name.split("/")
        if parameters is not None:
            parts[-1] += f"[{parameters}]"
    parts = [_UNSAFE.sub(lambda match: f"%{ord(match[0]):02x}", part) for part in parts]
    if any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{name or test!r} cannot be the name of a file below the directory of baselines")
    if any(len(part) > _LONGEST for part in parts):
        raise UsageError(f"{parts[-1][:40]}... is longer than the {_LONGEST} characters that a file's name may have")
    return f"{'/'.join(parts)}.json"


def _split(inside: str) -> list[str]:
    """Split the part of a node id after the file; parameters may hold what separates."""
    names, bracket, parameters = inside.partition("[")
    *classes, function = names.split("::")
    return [*classes, function + bracket + parameters]


def store(path: Path, test: str, peak_bytes: int) -> None:
    """Store the peak of ``test``.

    Raises:
        InputError: The file holds the peak of another test, or cannot be written.
    """
    if path.exists():
        plain = read_object(path, _MAX_BYTES)
        if plain.get("schema") == SCHEMA and plain.get("test") != test:
            raise InputError(
                f"{path} holds the peak of {shown(plain.get('test'))}: choose another name, or delete the file"
            )
    make_room(path)
    write_text(path, json.dumps({"schema": SCHEMA, "test": test, "peak_bytes": peak_bytes}, indent=2) + "\n")


def make_room(path: Path) -> None:
    """Create the directory of a baseline.

    Raises:
        InputError: It cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {path.parent}: {error.strerror}") from error


def require(path: Path) -> None:
    """Check that a baseline is there.

    Raises:
        InputError: It is not; the message says what stores it.
    """
    if not path.exists():
        raise InputError(f"no baseline {path}; store it with `pytest --memsim-update`")


def over(path: Path, test: str, peak_bytes: int, tolerance: float) -> str | None:
    """Return what to say when ``test`` took more than its file says, else None.

    Raises:
        InputError: There is no such file, or it is not the peak of this test.
    """
    require(path)
    plain = read_object(path, _MAX_BYTES)
    before = plain.get("peak_bytes")
    if plain.get("schema") != SCHEMA or type(before) is not int or before < 0:
        raise InputError(f"{path} is no baseline of a test; store one with `pytest --memsim-update`")
    if plain.get("test") != test:
        raise InputError(
            f"{path} holds the peak of {shown(plain.get('test'))}, not of {test}: "
            f"choose another name, or delete the file"
        )
    limit = before + max(before * tolerance, ERROR_BYTES)
    if peak_bytes <= limit:
        return None
    return f"the test took {format_bytes(peak_bytes)}, baseline {format_bytes(before)}, limit {format_bytes(limit)}"
