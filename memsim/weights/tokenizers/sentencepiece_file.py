"""A ``tokenizer.model``: what is needed of SentencePiece's ModelProto, read in bounds without the protobuf library.

Field numbers are those of sentencepiece's ``sentencepiece_model.proto``.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memsim.errors import InputError
from memsim.reading import open_regular

_MAX_BYTES = 64 << 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_UNIGRAM = 1

Fields = Iterator[tuple[int, int | bytes]]


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    """A vocabulary of SentencePiece.

    Attributes:
        pieces: By id.
        kinds: Of each piece: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 a byte.
        is_unigram: Whether it is a unigram model, which is not BPE.
        charsmap: What is done to characters before, as SentencePiece compiles it.
        space_first: Whether a text begins as if a space stood before it.
        strips_spaces: Whether runs of spaces become one, and none stay at the ends of a text.
        bos_id: Begins a text, if the model is asked to.
    """

    pieces: tuple[str, ...]
    kinds: tuple[int, ...]
    is_unigram: bool
    charsmap: bytes
    space_first: bool
    strips_spaces: bool
    bos_id: int


def read_sentencepiece(path: Path) -> SentencePieceFile:
    """Read an untrusted ``tokenizer.model``.

    Raises:
        InputError: It cannot be read, or is no such file.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; no tokenizer.model is that large")
    pieces, kinds = [], []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(data):
            if field == 1:
                piece = dict(_fields(_bytes(value)))
                pieces.append(_bytes(piece.get(1, b"")).decode())
                kinds.append(_integer(piece.get(3, 1)))
            elif field == 2:
                trainer = dict(_fields(_bytes(value)))
            elif field == 3:
                normalizer = dict(_fields(_bytes(value)))
        if not pieces:
            raise ValueError("it holds no piece")
        return SentencePieceFile(
            pieces=tuple(pieces),
            kinds=tuple(kinds),
            is_unigram=_integer(trainer.get(3, _UNIGRAM)) == _UNIGRAM,
            charsmap=_bytes(normalizer.get(2, b"")),
            space_first=_integer(normalizer.get(3, 1)) != 0,
            strips_spaces=_integer(normalizer.get(4, 1)) != 0,
            bos_id=_integer(trainer.get(41, 1)),
        )
    except (ValueError, struct.error) as error:  # a wrong byte of UTF-8 is a ValueError, too
        raise InputError(f"{path} is no SentencePiece model: {error}") from error


def _fields(data: bytes) -> Fields:
    """Yield (number, value) of each field of a message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            n_bytes, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            n_bytes = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if n_bytes > len(data) - position:
            raise ValueError("it is truncated")
        yield key >> 3, data[position : position + n_bytes]
        position += n_bytes


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it is truncated")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            # Negative ids (no such token) are written as 64 bits.
            return (value - (1 << 64) if value >> 63 else value), position
    raise ValueError("a number is too long")


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where text should")
    return value


def _integer(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("text stands where a number should")
    return value
