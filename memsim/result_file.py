"""A result record as JSON, and its untrusted reader.

Both are driven by the dataclasses of `memsim.results`. A float that is not finite (a loss that diverged) is written as
null, since JSON has no other word for it.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.files import write_text
from memsim.json_decode import decode
from memsim.json_file import parse_json, shown
from memsim.reading import read_bytes
from memsim.results import SCHEMA, Result
from memsim.units import format_bytes

MAX_RECORD_BYTES = 64 << 20


def to_json(record: Result) -> str:
    """Return ``record`` as JSON text, one trailing newline included."""
    return _dump(asdict(record))


def write_result(path: Path, record: Result) -> None:
    """Write ``record`` to ``path`` atomically.

    Raises:
        InputError: The file cannot be written.
    """
    write_text(path, to_json(record))


def emit_json(record: Result | Mapping[str, Any], destination: str) -> None:
    """Serve ``--json PATH|-``: write ``record`` to the file ``destination``, or to stdout for ``-``.

    Args:
        record: A result, or plain data from a command that has no run to report (``models``).
        destination: A path, or ``-``.

    Raises:
        InputError: The file, or standard output, cannot be written.
    """
    text = to_json(record) if isinstance(record, Result) else _dump(record)
    if destination == "-":
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # its reader has left, which is no fault
            raise
        except OSError as error:
            raise InputError(f"cannot write the record to standard output: {error.strerror or error}") from error
    else:
        write_text(Path(destination), text)


def _dump(data: Mapping[str, Any]) -> str:
    return json.dumps(finite(data), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Return plain ``value`` with every float that JSON cannot write replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_result(path: Path) -> Result:
    """Read a record file, untrusted.

    Raises:
        InputError: It cannot be read, is larger than 64 MiB, or is not a record of schema 1.
    """
    return from_json(read_bytes(path, MAX_RECORD_BYTES, "a result record"), str(path))


def from_json(data: str | bytes, where: str = "record") -> Result:
    """Read a record from JSON, untrusted.

    Args:
        data: The JSON text, or its bytes in UTF-8.
        where: What the error messages call it.

    Raises:
        InputError: Too large, not JSON, another schema, or a field that is missing, unknown or of the wrong type.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise InputError(f"{where} is larger than {format_bytes(MAX_RECORD_BYTES)}, too large for a result record")
    plain = parse_json(data, where)
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{where} has schema {shown(schema)}; this memsim reads {SCHEMA!r}")
    return decode(Result, plain, where)
