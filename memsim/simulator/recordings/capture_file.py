"""A memray capture, untrusted: is it one, is it whole, and its lines as a process with limits reads them."""

import signal
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from memsim.cap.child import child_command, start_child
from memsim.errors import InputError
from memsim.json_file import parse_json, shown
from memsim.reading import open_regular

_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_MAGIC = b"memray\0"
_KNOWN_VERSION = 13
"""The header of this version has the number of records at byte 17 (memray 1.19 and 1.20)."""

_MEMORY_BYTES = 2 << 30
_BYTES_PER_S = 1 << 20
_LEAST_S = 120
_MAX_LINE_BYTES = 16 << 20


def read_capture(path: Path, task: str) -> Iterator[Any]:
    """Yield what ``capture_process`` prints of the capture ``path``, its last line checked and left out.

    Raises:
        InputError: It is no capture, empty, cut short, or more than memray's reader can bear. What comes before is
            yielded by then.
    """
    expected = _expected_records(path)
    limit_s = _LEAST_S + path.stat().st_size // _BYTES_PER_S
    module = "memsim.simulator.recordings.capture_process"
    command = child_command(module, task, path.absolute(), _MEMORY_BYTES, limit_s)
    with start_child(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        timer = threading.Timer(limit_s, child.kill)
        timer.start()
        try:
            assert child.stdout is not None
            last: Any = None
            for line in _lines(child.stdout, path):
                if last is not None:
                    yield last
                last = line
            child.wait()
        finally:
            timer.cancel()
            child.kill()
    _check_end(path, last, child.returncode, expected)
    if "peak_bytes" in last:
        yield last


def _lines(pipe: IO[bytes], path: Path) -> Iterator[Any]:
    while line := pipe.readline(_MAX_LINE_BYTES + 1):
        if len(line) > _MAX_LINE_BYTES:
            raise InputError(f"{path} has a node with more allocations than a recording may")
        if line.endswith(b"\n"):  # a process that was killed leaves half a line
            yield parse_json(line, f"the reading of {path}")


def _check_end(path: Path, last: Any, returncode: int, expected: int | None) -> None:
    """Raise if reading ended in any way but well."""
    if not isinstance(last, dict) or returncode:
        reason = f"memray's reader ended with {_ending(returncode)}"
        raise InputError(f"{path} cannot be read as a memray capture: {reason}; it may be damaged")
    if "error" in last:
        raise InputError(f"{path} cannot be read as a memray capture: {last['error']}")
    if expected and last["records"] < expected:
        raise InputError(
            f"{path} is cut short: it holds {last['records']:,} of {expected:,} records; copy or record it again"
        )


def _ending(returncode: int) -> str:
    if returncode < 0:
        return signal.Signals(-returncode).name
    return f"exit code {returncode}"


def _expected_records(path: Path) -> int | None:
    """Return how many records the capture must hold: 0 if its process died, None if that is not known.

    Raises:
        InputError: It is empty, no capture, or a compressed one that is cut short.
    """
    with open_regular(path) as file:
        head = file.read(64)
        if not head:
            raise InputError(f"{path} is empty; a memray capture has at least a header")
        if head.startswith(_LZ4_MAGIC):
            _check_frame(file, path)
            return None
        if not head.startswith(_MAGIC):
            raise InputError(f"{path} is not a memray capture: it begins with {shown(head[:8])}")
        if len(head) < 25:
            raise InputError(f"{path} is cut short inside the header of a memray capture")
        version, n_records = struct.unpack_from("<I6xQ", head, len(_MAGIC))
        return int(n_records) if version == _KNOWN_VERSION else None


def _check_frame(file: BinaryIO, path: Path) -> None:
    """Walk the blocks of an LZ4 frame (its format description 1.6.3) to its end mark.

    Raises:
        InputError: The file ends before it.
    """
    file.seek(0, 2)
    size = file.tell()
    file.seek(4)
    flags, _ = file.read(2).ljust(2, b"\0")
    position = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    while position + 4 <= size:
        file.seek(position)
        (block,) = struct.unpack("<I", file.read(4))
        position += 4
        if not block:
            return
        position += (block & 0x7FFFFFFF) + (4 if flags & 16 else 0)
    raise InputError(f"{path} is cut short: its compressed data has no end; copy or record it again")
