"""Byte sizes as people write them: ``1GB`` is 10^9 bytes, ``1GiB`` is 2^30, a bare number is refused."""

import re

from memsim.errors import UsageError

MIB = 1 << 20

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30}
_BY_LOWER = {unit.lower(): unit for unit in _UNITS}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SIZE = re.compile(rf"\s*({_NUMBER})\s*([A-Za-z]*)\s*")
_SHARE = re.compile(rf"\s*({_NUMBER}(?:[eE][+-]?[0-9]+)?)\s*(%?)\s*")


def parse_bytes(text: str) -> int:
    """Return the number of bytes that ``text`` names, such as ``1GB``, ``512MiB`` or ``1.5 GiB``.

    Raises:
        UsageError: No number, no unit (``512`` could be bytes or megabytes), an unknown unit, or 2^63 bytes and more.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a size; write a number and a unit, such as 1GB or 512MiB")
    number, unit = match.groups()
    if not unit:
        raise UsageError(f"{text!r} has no unit; write {number}MB (10^6 bytes) or {number}MiB (2^20 bytes)")
    if unit.lower() not in _BY_LOWER:
        raise UsageError(f"{text!r} has an unknown unit {unit!r}; use one of {', '.join(_UNITS)}")
    n_bytes = float(number) * _UNITS[_BY_LOWER[unit.lower()]]
    if n_bytes >= 1 << 63:
        raise UsageError(f"{text[:40]!r} is larger than any memory; write a size such as 1GB or 512MiB")
    return int(n_bytes)


def format_bytes(n_bytes: float, decimal: bool = False) -> str:
    """Return ``n_bytes`` for people: in MiB (``612.4 MiB``), or in MB when ``decimal``.

    What would be 0.0 of them is in KiB or KB, or in bytes.
    """
    large, small = ("MB", "KB") if decimal else ("MiB", "KiB")
    if not n_bytes or abs(n_bytes) >= 0.05 * _UNITS[large]:
        return f"{n_bytes / _UNITS[large]:,.1f} {large}"
    return f"{n_bytes / _UNITS[small]:,.1f} {small}" if abs(n_bytes) >= _UNITS[small] else f"{n_bytes:,.0f} B"


def is_decimal(text: str) -> bool:
    """Return whether the user wrote a decimal unit (``1GB``), so that answers use MB too."""
    return "i" not in text.lower()


def parse_share(text: str) -> float:
    """Return the share that ``text`` names, such as ``2%`` or ``0.02``, as a number from 0 to 100 (10,000%).

    Raises:
        UsageError: Not a number, below 0, or above 10,000%.
    """
    match = _SHARE.fullmatch(text)
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share <= 100:
        raise UsageError(f"{text[:40]!r} is not a share; write a percentage such as 2%")
    return share
