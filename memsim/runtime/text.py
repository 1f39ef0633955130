"""Untrusted text, streamed: checked UTF-8 or JSONL in, pieces that are safe to tokenize one by one out."""

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from memsim.errors import InputError

PIECE_CHARS = 1 << 16
MAX_LINE_BYTES = 64 << 20


def pieces(chunks: Iterable[str], size: int = PIECE_CHARS) -> Iterator[str]:
    """Regroup ``chunks`` into pieces of at most ``size`` characters, cut between words where that is possible."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        start = 0
        while len(rest) - start > size:
            end = start + _last_cut(rest[start : start + size + 1])
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _last_cut(window: str) -> int:
    """Return the last place in ``window`` (its last character excepted) where no token of a usual tokenizer spans.

    That is before a lone space (which belongs to the word after it) or after a lone newline; else the end.
    """
    for end in range(len(window) - 2, 1, -1):
        before, here, after = window[end - 1], window[end], window[end + 1]
        if here == " " and not before.isspace() and not after.isspace():
            return end
        if before == "\n" and not window[end - 2].isspace() and not here.isspace():
            return end
    return len(window) - 1


def utf8_chunks(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield the text of ``file`` in chunks, without a byte-order mark.

    Raises:
        InputError: It is not UTF-8; the message says at which byte.
    """
    offset, pending = 0, b""
    while True:
        data = file.read(PIECE_CHARS)
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
