"""The record of ``memsim profile decompression``: written as JSON, read back as an untrusted file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from memsim.errors import InputError
from memsim.host import host_info, versions
from memsim.json_decode import decode
from memsim.json_file import read_object
from memsim.results import Host
from memsim.simulator.unpack_share import PARTS, UnpackShare

SCHEMA: Final = "memsim.decompression/1"
_MAX_BYTES = 4 << 20
_MAX_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    schema: Literal["memsim.decompression/1"] = field(default=SCHEMA, init=False)
    command: str
    model: str
    shares: tuple[UnpackShare, ...]
    host: Host
    versions: dict[str, str]


def shares_record(model: str, found: Sequence[UnpackShare]) -> dict[str, Any]:
    """Return the record of a profile as plain data."""
    record = _Record(
        command="profile decompression", model=model, shares=tuple(found), host=host_info(), versions=versions()
    )
    return asdict(record)


def read_shares(path: Path) -> tuple[UnpackShare, ...]:
    """Read the shares of a record.

    Raises:
        InputError: It cannot be read, is no record of this schema, or a share is outside 0 to 1.
    """
    found = decode(_Record, read_object(path, _MAX_BYTES), str(path)).shares
    for share in found:
        bands = [share.share.get(part) for part in PARTS]
        if not all(band is not None and 0 <= band.low <= band.nominal <= band.high <= 1 for band in bands):
            raise InputError(f"{path}: a share is not from 0 to 1, or one of {', '.join(PARTS)} is missing")
        if not 1 <= share.seq_len <= _MAX_TOKENS:
            raise InputError(f"{path}: seq_len {share.seq_len} is not from 1 to {_MAX_TOKENS}")
    return found
