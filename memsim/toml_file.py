"""TOML from untrusted files: bounded, and one-line errors."""

import tomllib
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.reading import read_bytes


def read_toml(path: Path, max_bytes: int, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        max_bytes: A larger one is refused.
        what: What error messages call it (``a task file``).

    Raises:
        InputError: It cannot be read, is too large, or is no TOML.
    """
    data = read_bytes(path, max_bytes, what)
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {' '.join(str(error).split())[:200]}") from None
