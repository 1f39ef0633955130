"""Whether a file is a text or holds records: its content decides, so that nobody trains on JSON's own signs.

Records are JSON objects, one a line (whatever the file is called) or all in one array. A name that says JSON holds its
file to it. Tables are refused.
"""

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO

from memsim.data.text import MAX_LINE_BYTES, jsonl_lines
from memsim.errors import InputError

_JSON_NAMES = (".jsonl", ".ndjson", ".jsonlines", ".json")
_TABLE_NAMES = (".csv", ".tsv", ".parquet", ".arrow", ".xlsx")
_BOM = b"\xef\xbb\xbf"


def holds_records(file: BinaryIO, name: str) -> bool:
    """Return whether ``file``, which is at its beginning and is left there, holds records and no text.

    Raises:
        InputError: It is a table, or one JSON value that is neither records nor text.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix in _TABLE_NAMES:
        raise InputError(f"{name} is a table; make JSON lines of it, each an object with a 'text' string")
    start = _first_byte(file)
    line = _line(file) if start == b"{" else b""
    file.seek(0)
    if suffix in _JSON_NAMES:
        return True
    if start == b"{" and _is_object(line):
        return True
    if start not in (b"{", b"["):
        return False
    whole = _whole(file)
    file.seek(0)
    if isinstance(whole, dict) or (isinstance(whole, list) and not _all_objects(whole)):
        raise InputError(f"{name} is JSON, but neither an object a line nor an array of objects")
    return isinstance(whole, list) and bool(whole)


def record_texts(file: BinaryIO, name: str) -> Iterator[list[str]]:
    """Yield the ``text`` of each record, as a list of one chunk.

    Raises:
        InputError: As ``record_lines``; or a record is not UTF-8, no JSON object, or has no ``text`` string.
    """
    for where, record in record_lines(file, name):
        yield [_document(record, where)]


def record_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield (where it stands, JSON) of each record.

    Raises:
        InputError: A line is too long; or an array is too large, not JSON, or not of objects.
    """
    start = _first_byte(file)
    file.seek(0)
    if start != b"[":
        for number, line in jsonl_lines(file, name):
            yield f"{name} line {number}", line
        return
    whole = _whole(file)
    if not isinstance(whole, list) or not _all_objects(whole):
        size = f"at most {MAX_LINE_BYTES >> 20} MiB of "
        raise InputError(f"{name} begins as an array, but is not {size}JSON objects in one; write one object a line")
    for number, record in enumerate(whole, 1):
        yield f"{name} record {number}", json.dumps(record).encode()


def _first_byte(file: BinaryIO) -> bytes:
    """Return the first byte that is no space, and stand at it."""
    if file.read(len(_BOM)) != _BOM:
        file.seek(0)
    while (byte := file.read(1)) and byte.isspace():
        pass
    if byte:
        file.seek(-1, 1)
    return byte


def _line(file: BinaryIO) -> bytes:
    return file.readline(MAX_LINE_BYTES + 1)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _whole(file: BinaryIO) -> object:
    """Return a whole file as JSON; None when it is none, or too large to be one value."""
    data = file.read(MAX_LINE_BYTES + 1)
    try:
        return json.loads(data.decode("utf-8-sig")) if len(data) <= MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        return None


def _all_objects(values: list[object]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _document(line: bytes, where: str) -> str:
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: byte {error.start} of the record is wrong ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is not JSON ({error}); every record must be an object with a 'text' string"
        ) from error
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str):
        problem = "'text' is not a string" if isinstance(data, dict) and "text" in data else "there is no 'text' field"
        raise InputError(f"{where}: {problem}; every record must be an object with a 'text' string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: 'text' holds half of a surrogate pair, which is not a character") from error
    return text
