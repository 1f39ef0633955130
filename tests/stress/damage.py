"""Damaging files at random, the same way for the same seed."""

import re
from collections.abc import Callable

import numpy as np

_NUMBERS = (
    b"0",
    b"-1",
    b"1e308",
    b"1e999",
    b"18446744073709551616",
    b"9" * 400,
    b"4294967297",
    b"NaN",
    b"null",
    b"0.5",
)
_VALUES = (b"null", b"true", b"[]", b"{}", b'""', b'"\\u0000"', b'"../../x"', b"[" * 5000, b'"\\ud800"')

Random = np.random.Generator


def _place(random: Random, data: bytes) -> int:
    """Return a position: often near the beginning, where headers are, or the end."""
    kind = random.integers(3)
    if kind == 0:
        return int(random.integers(len(data) + 1))
    near = min(len(data), 2 ** int(random.integers(1, 13)))
    return int(random.integers(near + 1)) if kind == 1 else len(data) - int(random.integers(near + 1))


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(2 ** int(random.integers(6))):
        if changed:
            changed[min(_place(random, data), len(changed) - 1)] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _cut(random: Random, data: bytes) -> bytes:
    return data[: _place(random, data)]


def _remove(random: Random, data: bytes) -> bytes:
    start = _place(random, data)
    return data[:start] + data[start + int(random.integers(1, 64)) :]


def _insert(random: Random, data: bytes) -> bytes:
    start, n_bytes = _place(random, data), 2 ** int(random.integers(13))
    piece = bytes(n_bytes) if random.random() < 0.3 else random.bytes(n_bytes)
    return data[:start] + piece + data[start:]


def _repeat(random: Random, data: bytes) -> bytes:
    start = _place(random, data)
    return data[:start] + data[start : start + int(random.integers(1, 4096))] * 2 + data[start:]


def _overwrite_integer(random: Random, data: bytes) -> bytes:
    """Replace 8 bytes by a little-endian number that is too large, or odd."""
    numbers = (0, 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
    start = _place(random, data)
    return data[:start] + numbers[int(random.integers(len(numbers)))].to_bytes(8, "little") + data[start + 8 :]


def _replace_match(random: Random, data: bytes, pattern: bytes, choices: tuple[bytes, ...]) -> bytes:
    found = list(re.finditer(pattern, data[:200_000]))
    if not found:
        return _flip(random, data)
    match = found[int(random.integers(len(found)))]
    return data[: match.start()] + choices[int(random.integers(len(choices)))] + data[match.end() :]


def _other_number(random: Random, data: bytes) -> bytes:
    return _replace_match(random, data, rb"-?\d+(\.\d+)?", _NUMBERS)


def _other_value(random: Random, data: bytes) -> bytes:
    return _replace_match(random, data, rb'"[^"]{0,80}"|\[[^\]\[]{0,200}\]', _VALUES)


_WAYS: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flip,
    _cut,
    _remove,
    _insert,
    _repeat,
    _overwrite_integer,
    _other_number,
    _other_value,
)


def damaged(random: Random, data: bytes) -> bytes:
    """Return ``data`` damaged in one to three ways."""
    for _ in range(int(random.integers(1, 4))):
        data = _WAYS[int(random.integers(len(_WAYS)))](random, data)
    return data
