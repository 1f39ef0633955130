"""Files whose bytes stay in no page cache, where they would be memory under the cap until they are on disk."""

import errno
import os
from contextlib import suppress

PIECE_BYTES = 256 << 10
"""What may be dirty in the page cache at once where writes cannot go past it."""

_BLOCK_BYTES = 4096


class UncachedFile:
    """Reads and writes whole disk blocks by direct I/O.

    Where the file system has none, small pieces pass through the page cache and are dropped as soon as they are on
    disk, or read.
    """

    def __init__(self, descriptor: int) -> None:
        """Prepare for the file open as ``descriptor``, which stays the caller's."""
        self._descriptor = descriptor
        self._direct = _open_direct(descriptor)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data``.

        Raises:
            OSError: The disk is full or failed.
        """
        self._all(True, data, offset)

    def read(self, data: memoryview, offset: int) -> None:
        """Fill ``data``.

        Raises:
            OSError: The disk failed, or the file ends before.
        """
        self._all(False, data, offset)

    def close(self) -> None:
        """Give back what was opened here."""
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None

    def _all(self, writing: bool, data: memoryview, offset: int) -> None:
        while data:
            try:
                done = self._some(writing, data, offset)
            except OSError as error:
                if self._direct is None or error.errno != errno.EINVAL:
                    raise
                self.close()  # it opens files for direct I/O, but refuses to do any
                continue
            if not done:
                raise OSError(errno.EIO, "it ended early: something cut it short")
            data, offset = data[done:], offset + done

    def _some(self, writing: bool, data: memoryview, offset: int) -> int:
        if self._direct is not None:
            return os.pwrite(self._direct, data, offset) if writing else os.preadv(self._direct, [data], offset)
        data = data[:PIECE_BYTES]
        if writing:
            done = os.pwrite(self._descriptor, data, offset)
            os.fdatasync(self._descriptor)
        else:
            done = os.preadv(self._descriptor, [data], offset)
        os.posix_fadvise(self._descriptor, offset, done, os.POSIX_FADV_DONTNEED)
        return done


class UncachedWriter:
    """Writes an empty file front to back through ``buffer``: what ``TensorFileWriter`` needs of a file."""

    def __init__(self, descriptor: int, buffer: memoryview) -> None:
        """Prepare to write.

        Args:
            descriptor: The file, which stays the caller's.
            buffer: Anonymous memory from a page boundary on, at least a disk block; undefined afterwards.
        """
        self._descriptor = descriptor
        self._file = UncachedFile(descriptor)
        self._buffer = buffer[: len(buffer) // _BLOCK_BYTES * _BLOCK_BYTES]
        self._used = self._written = 0

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def write(self, data: memoryview) -> None:
        """Append ``data``.

        Raises:
            OSError: The disk is full or failed.
        """
        while data:
            piece = data[: len(self._buffer) - self._used]
            self._buffer[self._used : self._used + len(piece)] = piece
            data, self._used = data[len(piece) :], self._used + len(piece)
            if self._used == len(self._buffer):
                self._write_out(self._used)

    def flush(self) -> None:
        """Write the end of the file, which is complete then.

        Raises:
            OSError: The disk is full or failed.
        """
        if self._used:
            end = self._written + self._used
            self._write_out(-(-self._used // _BLOCK_BYTES) * _BLOCK_BYTES)
            os.ftruncate(self._descriptor, end)
        self._file.close()

    def _write_out(self, n_bytes: int) -> None:
        self._file.write(self._buffer[:n_bytes], self._written)
        self._written, self._used = self._written + n_bytes, 0


def _open_direct(descriptor: int) -> int | None:
    """Open the file (which may have no name) once more, for direct I/O; return None where that cannot be."""
    with suppress(OSError):
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    return None
