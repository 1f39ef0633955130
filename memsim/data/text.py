"""Untrusted text, streamed: checked UTF-8 in, chunks of text or lines out."""

import codecs
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
