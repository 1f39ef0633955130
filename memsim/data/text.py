"""Untrusted text, streamed: checked UTF-8 or JSONL in, chunks of text out."""

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO

from memsim.errors import InputError

CHUNK_BYTES = 1 << 16
MAX_LINE_BYTES = 64 << 20


def utf8_chunks(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield the text of ``file`` in chunks, without a byte-order mark.

    Raises:
        InputError: It is not UTF-8; the message says at which byte.
    """
    offset, pending = 0, b""
    while True:
        data = file.read(CHUNK_BYTES)
        buffer = pending + data
        try:
            text, used = codecs.utf_8_decode(buffer, "strict", not data)
        except UnicodeDecodeError as error:
            raise InputError(f"{name} is not UTF-8: byte {offset + error.start} is wrong ({error.reason})") from error
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset, pending = offset + used, buffer[used:]
        if not data:
            return


def jsonl_texts(file: BinaryIO, name: str) -> Iterator[list[str]]:
    """Yield the ``text`` of each line's object, as a list of one chunk; blank lines are skipped.

    Raises:
        InputError: A line is longer than 64 MiB, is not UTF-8 or not a JSON object, or has no ``text`` string.
    """
    for number, line in jsonl_lines(file, name):
        yield [_document(line, f"{name} line {number}")]


def jsonl_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of each line that is not blank.

    Raises:
        InputError: A line is longer than 64 MiB.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{name} line {number} is longer than {MAX_LINE_BYTES >> 20} MiB")
        if line.strip():
            yield number, line


def _document(line: bytes, where: str) -> str:
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: byte {error.start} of the line is wrong ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); every line must be an object with a 'text' string") from error
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str):
        problem = "'text' is not a string" if isinstance(data, dict) and "text" in data else "there is no 'text' field"
        raise InputError(f"{where}: {problem}; every line must be an object with a 'text' string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: 'text' holds half of a surrogate pair, which is not a character") from error
    return text
