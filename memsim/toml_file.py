"""TOML from untrusted files: bounded, and one-line errors."""

import tomllib
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.json_file import open_regular
from memsim.units import MIB


def read_toml(path: Path, max_bytes: int, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        max_bytes: A larger one is refused.
        what: What error messages call it (``a task file``).

    Raises:
        InputError: It cannot be read, is too large, or is no TOML.
    """
    try:
        with open_regular(path) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > max_bytes:
        most = f"{max_bytes >> 20} MiB" if max_bytes >= MIB else f"{max_bytes >> 10} KiB"
        raise InputError(f"{path} is larger than the {most} that {what} may have")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {' '.join(str(error).split())[:200]}") from None
