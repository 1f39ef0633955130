"""Pages on disk: weights mapped read-only, and the scratch file that spilled values and optimizer state live in."""

import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.files import require_disk
from memsim.ir.program import Program, Space
from memsim.units import format_bytes
from memsim.weights.pack import Pack, verify_part
from memsim.weights.tensor_file import map_file, view

NUMPY_DTYPES = {"f32": np.float32, "u32": np.uint32, "f16": np.float16, "f64": np.float64}

Array = NDArray[Any]


class MappedWeights:
    """The parts of a pack, mapped read-only on first use; their pages come and go with page_in and evict.

    Args:
        pack: The weights.
        cold: Also drop pages from the system's page cache, before the first page-in of a part and at every eviction,
            so that each page-in reads the disk.
    """

    def __init__(self, pack: Pack, cold: bool = False) -> None:
        self._pack = pack
        self._cold = cold
        self._maps: dict[str, mmap.mmap] = {}
        self._verified: set[str] = set()
        self._views: dict[str, Array] = {}

    def array(self, source: str) -> Array:
        """Return the read-only view of ``part/tensor``."""
        if source not in self._views:
            part, name = source.split("/", 1)
            self._views[source] = view(self._maps[part], self._pack.part(part).tensors[name])
        return self._views[source]

    def page_in(self, part: str, everything: bool) -> None:
        """Map ``part`` and ask the kernel to read it ahead; the first time, check its bytes against the checksum.

        Raises:
            InputError: The file cannot be mapped, or it changed since it was packed.
        """
        mapped = self._mapped(part)
        if everything:
            mapped.madvise(mmap.MADV_WILLNEED)
        if part not in self._verified:
            verify_part(self._pack, part, mapped)
            self._verified.add(part)

    def prefetch(self, part: str) -> None:
        """Ask the kernel to read ``part`` while something else computes."""
        self._mapped(part).madvise(mmap.MADV_WILLNEED)

    def _mapped(self, part: str) -> mmap.mmap:
        if part not in self._maps:
            if self._cold:
                self._drop_file(part)
            self._maps[part] = map_file(self._pack.part(part).path)
        return self._maps[part]

    def evict(self, part: str) -> None:
        """Let go of the pages of ``part``."""
        self._maps[part].madvise(mmap.MADV_DONTNEED)
        if self._cold:
            self._drop_file(part)

    def _drop_file(self, part: str) -> None:
        with self._pack.part(part).path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class ScratchFile:
    """One unlinked file that holds every SCRATCH value of the programs that share it.

    Its pages are written back and dropped after each use, so that spilled bytes do not stay in memory. Being unlinked,
    the file disappears with the process, however that ends.
    """

    def __init__(self, sizes: Mapping[str, int], directory: Path) -> None:
        """Reserve disk space for ``sizes`` (bytes by source) under ``directory``.

        Raises:
            InputError: The directory is memory (tmpfs), cannot be written, or the disk is full.
        """
        self._offsets: dict[str, tuple[int, int]] = {}
        total = 0
        for source, n_bytes in sizes.items():
            self._offsets[source] = (total, n_bytes)
            total += _whole_pages(n_bytes)
        self.n_bytes = total
        if not total:
            return
        require_disk(directory, "the scratch")
        try:
            with tempfile.TemporaryFile(dir=directory, prefix=".memsim-scratch-") as file:
                os.posix_fallocate(file.fileno(), 0, total)
                self._map = mmap.mmap(file.fileno(), total)
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise InputError(
                    f"the scratch directory {directory} is full: spilling needs {format_bytes(total)}; "
                    f"free some space or choose another with --scratch"
                ) from error
            raise InputError(f"cannot write scratch files in {directory}: {error.strerror}") from error
        weakref.finalize(self, os.close, self._descriptor)

    def __contains__(self, source: str) -> bool:
        return source in self._offsets

    def array(self, source: str, dtype: str, shape: tuple[int, ...] = (-1,)) -> Array:
        """Return the writable view of ``source``, flat without a ``shape``."""
        offset, n_bytes = self._offsets[source]
        return np.frombuffer(self._map, np.uint8, n_bytes, offset).view(NUMPY_DTYPES[dtype]).reshape(shape)

    def write_back(self, source: str) -> None:
        """Write the pages of ``source`` to disk and drop them from memory."""
        offset, n_bytes = self._pages(source)
        self._map.flush(offset, n_bytes)
        self.drop(source)

    def drop(self, source: str) -> None:
        """Drop the (clean) pages of ``source`` from memory."""
        offset, n_bytes = self._pages(source)
        self._map.madvise(mmap.MADV_DONTNEED, offset, n_bytes)
        os.posix_fadvise(self._descriptor, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def _pages(self, source: str) -> tuple[int, int]:
        """Return (offset, length) of the whole pages of ``source``."""
        offset, n_bytes = self._offsets[source]
        return offset, _whole_pages(n_bytes)


def _whole_pages(n_bytes: int) -> int:
    return -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def scratch_sizes(*programs: Program) -> dict[str, int]:
    """Return the bytes of every SCRATCH source of ``programs``."""
    values = (value for program in programs for value in program.values.values())
    return {value.source: value.n_bytes for value in values if value.space is Space.SCRATCH}
