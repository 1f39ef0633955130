"""Weights on disk, mapped read-only: their pages come and go."""

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.reading import open_regular
from memsim.weights.pack import Pack, verify_part
from memsim.weights.tensor_file import map_file, view

NUMPY_DTYPES = {"f32": np.float32, "u32": np.uint32, "f16": np.float16, "bf16": np.uint16, "f64": np.float64}
"""NumPy has no bf16: its values are their bits."""

Array = NDArray[Any]

_ASK_BYTES = 1 << 20


class MappedWeights:
    """The parts of a pack, mapped read-only on first use; their pages come and go with page_in and evict.

    Args:
        pack: The weights.
        cold: Also drop pages from the system's page cache, before the first page-in of a part and at every eviction,
            so that each page-in reads the disk.
        verify_always: Check a part against its checksum at every page-in, and not the first time alone.
    """

    def __init__(self, pack: Pack, cold: bool = False, verify_always: bool = False) -> None:
        self._pack = pack
        self._cold = cold
        self._verify_always = verify_always
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
        """Map ``part`` and ask the kernel to read it ahead; the first time, or always, check its bytes' checksum.

        Raises:
            InputError: The file cannot be mapped, or it changed since it was packed.
        """
        mapped = self._mapped(part)
        if everything:
            mapped.madvise(mmap.MADV_WILLNEED)
        if self._verify_always or part not in self._verified:
            verify_part(self._pack, part, mapped)
            self._verified.add(part)

    def verify(self) -> None:
        """Check every part against its checksum now, so that no step has to.

        Raises:
            InputError: A file cannot be mapped, or it changed since it was packed.
        """
        for part in self._pack.parts:
            self.page_in(part, everything=True)
            self.evict(part)

    def prefetch(self, part: str, n_bytes: int) -> None:
        """Ask the kernel to read the first ``n_bytes`` of the tensors of ``part`` while something else computes."""
        mapped = self._mapped(part)
        start = min(entry.start for entry in self._pack.part(part).tensors.values())
        end = min(start + n_bytes, len(mapped))
        # The kernel answers one request with no more than it reads ahead, a megabyte or so.
        for offset in range(0, end, _ASK_BYTES):
            mapped.madvise(mmap.MADV_WILLNEED, offset, min(_ASK_BYTES, end - offset))

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
        with open_regular(self._pack.part(part).path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
