"""The rates of this machine's disk and page faults: a temporary file, written, read and mapped."""

import mmap
import os
import tempfile
import time
from pathlib import Path

from memsim.errors import InputError
from memsim.files import require_disk, require_free
from memsim.units import MIB

FILE_BYTES = 256 * MIB
_PIECE_BYTES = 4 * MIB
_RANDOM_BYTES = 16_384
_RANDOM_READS = 200


def measure_storage(directory: Path, file_bytes: int = FILE_BYTES) -> dict[str, list[float]]:
    """Return samples of the rates of the disk that holds ``directory``, by their names in device files.

    A virtual machine's disk may have a cache behind it that this cannot see: what is measured is what a run gets.

    Raises:
        InputError: The directory is in memory, or its disk is full or fails.
    """
    require_disk(directory, "the calibration")
    require_free(directory, 2 * file_bytes, "the calibration")
    try:
        with tempfile.TemporaryFile(dir=directory, prefix=".memsim-calibrate-") as file:
            descriptor = file.fileno()
            samples = {"flash_write_bytes_per_s": [_write(descriptor, file_bytes) for _ in range(2)]}
            samples["flash_read_bytes_per_s"] = [_read(descriptor, file_bytes) for _ in range(2)]
            samples["flash_latency_s"] = [_latency(descriptor, file_bytes) for _ in range(3)]
            samples["fault_s"] = [_faults(descriptor, file_bytes) for _ in range(3)]
    except OSError as error:
        raise InputError(f"cannot measure the disk of {directory}: {error.strerror or error}") from error
    return samples


def _drop(descriptor: int) -> None:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _write(descriptor: int, file_bytes: int) -> float:
    piece = os.urandom(_PIECE_BYTES)
    start = time.perf_counter()
    for offset in range(0, file_bytes, _PIECE_BYTES):
        os.pwrite(descriptor, piece, offset)
    os.fsync(descriptor)
    return file_bytes / (time.perf_counter() - start)


def _read(descriptor: int, file_bytes: int) -> float:
    _drop(descriptor)
    start = time.perf_counter()
    for offset in range(0, file_bytes, _PIECE_BYTES):
        os.pread(descriptor, _PIECE_BYTES, offset)
    return file_bytes / (time.perf_counter() - start)


def _latency(descriptor: int, file_bytes: int) -> float:
    """Return the seconds of a small read far from the one before."""
    _drop(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    places = file_bytes // _RANDOM_BYTES
    start = time.perf_counter()
    for number in range(_RANDOM_READS):
        os.pread(descriptor, _RANDOM_BYTES, number * 7_919 % places * _RANDOM_BYTES)
    seconds = (time.perf_counter() - start) / _RANDOM_READS
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NORMAL)
    return seconds


def _faults(descriptor: int, file_bytes: int) -> float:
    """Return the seconds a page costs that is in the page cache and not mapped yet."""
    os.pread(descriptor, file_bytes, 0)
    with mmap.mmap(descriptor, file_bytes, prot=mmap.PROT_READ) as mapped:
        start = time.perf_counter()
        for offset in range(0, file_bytes, mmap.PAGESIZE):
            mapped[offset]
        touched_s = time.perf_counter() - start
        start = time.perf_counter()
        for offset in range(0, file_bytes, mmap.PAGESIZE):
            mapped[offset]
        loop_s = time.perf_counter() - start
    return max(touched_s - loop_s, 0.0) / (file_bytes // mmap.PAGESIZE)
