"""The scratch file that spilled values, paged adapters and optimizer state live in."""

import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from memsim.errors import InputError
from memsim.execution.storage.arrays import anonymous
from memsim.execution.storage.disk_queue import DiskQueue
from memsim.execution.storage.mapped_weights import NUMPY_DTYPES, Array
from memsim.files import require_disk
from memsim.ir.program import Program, Space
from memsim.planner.staging import N_SLOTS, Staging, whole_blocks
from memsim.units import format_bytes


class ScratchFile:
    """One unlinked file that holds every SCRATCH value of the programs that share it.

    Values are written from planned memory past the page cache, while the step goes on. What nodes change in place
    (optimizer state) is read and changed in a window of that memory; all else is read into the arrays that want it,
    through page cache pages that are clean and dropped at once. So spilled bytes do not stay in memory. Being
    unlinked, the file disappears with the process, however that ends.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        staging: Staging,
        directory: Path,
        allocate: Callable[[int], mmap.mmap] | None = None,
    ) -> None:
        """Reserve disk space for ``sizes`` (bytes by source) under ``directory``.

        Args:
            sizes: Of the values.
            staging: Sizes of the memory beside them.
            directory: On a disk.
            allocate: Maps the staging memory, whole pages.

        Raises:
            InputError: The directory is memory (tmpfs), cannot be written, or the disk is full.
        """
        self._offsets: dict[str, tuple[int, int]] = {}
        total = 0
        for source, n_bytes in sizes.items():
            self._offsets[source] = (total, n_bytes)
            total += -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.n_bytes = total
        if not total:
            return
        self._descriptor = _reserve(directory, total)
        weakref.finalize(self, os.close, self._descriptor)
        # Only what was asked for is read ahead: the next value in the file is seldom the next in the step.
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._queue = DiskQueue(self._descriptor)
        weakref.finalize(self, self._queue.close)
        self._writes: dict[str, int] = {}
        buffer = np.frombuffer((allocate or anonymous)(staging.n_bytes), np.uint8)
        self._window, self._in_window, self._window_job = buffer[: staging.window_bytes], "", 0
        self._slots = buffer[staging.window_bytes :].reshape(N_SLOTS, staging.slot_bytes)
        self._slot_writes = [0] * N_SLOTS

    def __contains__(self, source: str) -> bool:
        return source in self._offsets

    def write(self, source: str, tensors: Sequence[Array]) -> None:
        """Take ``tensors`` (one after the other, they are all of ``source``) and write them while the step goes on."""
        if source == self._in_window:
            self._in_window = ""
        offset, used, room = self._offsets[source][0], 0, self._slots.shape[1]
        for tensor in tensors:
            data = _bytes(tensor)
            while data.size:
                if not used:
                    slot = self._free_slot()
                piece = data[: room - used]
                self._slots[slot, used : used + piece.size] = piece
                data, used = data[piece.size :], used + piece.size
                if used == room:
                    self._write_slot(source, slot, used, offset)
                    offset, used = offset + used, 0
        if used:
            self._write_slot(source, slot, used, offset)

    def _free_slot(self) -> int:
        """Return the slot that was written longest ago, once it is on disk."""
        slot = int(np.argmin(self._slot_writes))
        self._queue.wait(self._slot_writes[slot])
        return slot

    def _write_slot(self, source: str, slot: int, used: int, offset: int) -> None:
        number = self._queue.write(self._slots[slot, : whole_blocks(used)].data, offset)
        self._slot_writes[slot] = self._writes[source] = number

    def read(self, source: str, tensors: Sequence[Array]) -> None:
        """Fill ``tensors``, one after the other, with what was last written to ``source``."""
        self._queue.wait(self._writes.pop(source, 0))
        offset, n_bytes = self._offsets[source]
        buffers = [_bytes(tensor).data for tensor in tensors]
        position = 0
        while buffers:
            done = os.preadv(self._descriptor, buffers, offset + position)
            if not done:
                raise InputError(f"the scratch file ended at byte {offset + position}: something cut it short")
            position += done
            while buffers and done >= len(buffers[0]):
                done -= len(buffers.pop(0))
            if buffers:
                buffers[0] = buffers[0][done:]
        os.posix_fadvise(self._descriptor, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def read_piece(self, source: str, start: int, tensor: Array) -> None:
        """Fill ``tensor`` with what was last written to ``source``, from byte ``start`` of it on."""
        self._queue.wait(self._writes.pop(source, 0))
        offset, data = self._offsets[source][0] + start, _bytes(tensor).data
        if os.preadv(self._descriptor, [data], offset) != len(data):
            raise InputError(f"the scratch file ended at byte {offset}: something cut it short")
        os.posix_fadvise(self._descriptor, offset, len(data), os.POSIX_FADV_DONTNEED)

    def read_ahead(self, source: str) -> None:
        """Ask the kernel for the pages of ``source`` while something else computes."""
        if self._queue.is_done(self._writes.get(source, 0)):
            os.posix_fadvise(self._descriptor, *self._offsets[source], os.POSIX_FADV_WILLNEED)

    def open_window(self, source: str) -> None:
        """Start to read ``source`` into the window, once what is there now is on disk."""
        if source != self._in_window:
            offset, n_bytes = self._offsets[source]
            self._window_job = self._queue.read(self._window[: whole_blocks(n_bytes)].data, offset)
            self._in_window = source

    def array(self, source: str, dtype: str, shape: tuple[int, ...] = (-1,)) -> Array:
        """Return ``source`` in the window, to be changed there; flat without a ``shape``.

        Only what is there before a step starts is sure to fit. Valid until the window is opened for another source, or
        written back.
        """
        self.open_window(source)
        self._queue.wait(self._window_job)
        return self._window[: self._offsets[source][1]].view(NUMPY_DTYPES[dtype]).reshape(shape)

    def write_back(self, source: str) -> None:
        """Write ``source``, which is in the window, while the step goes on."""
        offset, n_bytes = self._offsets[source]
        self._writes[source] = self._queue.write(self._window[: whole_blocks(n_bytes)].data, offset)
        self._in_window = ""


def _bytes(tensor: Array) -> Array:
    return tensor.reshape(-1).view(np.uint8)


def _reserve(directory: Path, n_bytes: int) -> int:
    """Return the descriptor of a nameless file of ``n_bytes`` in ``directory``."""
    require_disk(directory, "the scratch")
    try:
        with tempfile.TemporaryFile(dir=directory, prefix=".memsim-scratch-") as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
            return os.dup(file.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(
                f"the scratch directory {directory} is full: spilling needs {format_bytes(n_bytes)}; "
                f"free some space or choose another with --scratch"
            ) from error
        raise InputError(f"cannot write scratch files in {directory}: {error.strerror}") from error


def scratch_sizes(*programs: Program) -> dict[str, int]:
    """Return the bytes of every SCRATCH source of ``programs``."""
    values = (value for program in programs for value in program.values.values())
    return {value.source: value.n_bytes for value in values if value.space is Space.SCRATCH}
