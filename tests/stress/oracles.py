"""What other libraries read of the same files, and whether memsim read the same."""

import json
import math
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corpus import WORDS
from safetensors.numpy import load_file
from tokenizers import Tokenizer


def plain(value: Any) -> Any:
    """Return a result as JSON would hold it."""
    return json.loads(json.dumps(asdict(value) if is_dataclass(value) else value, default=str))


def assert_holds(found: Any, parsed: Any, at: str = "") -> None:
    """``found`` must hold everything of ``parsed``; it may hold more: what the file leaves to defaults."""
    if isinstance(parsed, dict):
        assert isinstance(found, dict), at
        for key, value in parsed.items():
            assert key in found, f"{at}/{key} was read by nobody"
            assert_holds(found[key], value, f"{at}/{key}")
    elif isinstance(parsed, list):
        assert isinstance(found, list), f"{at}: {found!r} is no list"
        assert len(found) == len(parsed), at
        for index, (one, other) in enumerate(zip(found, parsed, strict=True)):
            assert_holds(one, other, f"{at}/{index}")
    elif isinstance(parsed, bool) or isinstance(found, bool):
        assert found is parsed, f"{at}: {found!r} is not {parsed!r}"
    elif isinstance(parsed, int | float):
        assert isinstance(found, int | float), f"{at}: {found!r} is not {parsed!r}"
        assert math.isclose(found, parsed, rel_tol=1e-15), f"{at}: {found!r} is not {parsed!r}"
    else:
        assert str(found) == str(parsed) if parsed is not None else found is None, f"{at}: {found!r} is not {parsed!r}"


def is_json(path: Path, found: Any) -> None:
    """Check a record by ``json``."""
    assert_holds(plain(found), json.loads(path.read_bytes()))


def are_json_lines(path: Path, found: list[Any]) -> None:
    """Check records by ``json``, a line each."""
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    assert_holds([plain(item) for item in found], [json.loads(line) for line in lines])


def is_toml(path: Path, found: Any) -> None:
    """Check what was read against TOML as the standard library reads it."""
    assert_holds(plain(found), tomllib.loads(path.read_text(encoding="utf-8")))


def are_tensors(found: dict[str, Any], files: list[Path]) -> None:
    """Check named arrays by ``safetensors``, to the bit."""
    stored: dict[str, Any] = {}
    for path in files:
        stored |= load_file(path)
    for name, values in found.items():
        np.testing.assert_array_equal(values.reshape(stored[name].shape), stored[name].astype(values.dtype), name)


def is_tokenizer(path: Path, found: list[int]) -> None:
    """Check ids by the tokenizers library."""
    fresh = Tokenizer.from_file(str(path))
    fresh.no_truncation()
    fresh.no_padding()
    assert found == fresh.encode(WORDS, add_special_tokens=False).ids


def are_rows(path: Path, found: list[Any]) -> None:
    """Check rows by SQLite."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        stored = [dict(row) for row in connection.execute("SELECT * FROM points WHERE key = 'k1'")]
    for row in stored:
        row["record"] = None
        row["fits"] = None if row["fits"] is None else bool(row["fits"])
    assert_holds([plain(row) for row in found], stored)


_MEMRAY = """
import sys
from memray import FileReader
with FileReader(sys.argv[1]) as reader:
    print(sum(record.size for record in reader.get_high_watermark_allocation_records(merge_threads=True)))
"""


def is_capture(path: Path, found: Any) -> None:
    """Check the high-water mark by memray, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", _MEMRAY, str(path)], capture_output=True, text=True, check=True)
    assert found.peak_bytes == int(done.stdout)
