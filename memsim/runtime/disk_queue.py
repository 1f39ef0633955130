"""Reading and writing a file in a thread of its own, past the page cache where the file system allows it."""

import errno
import os
import threading
from contextlib import suppress
from queue import SimpleQueue

from memsim.errors import InputError

PIECE_BYTES = 256 << 10
"""What may be dirty in the page cache at once where writes cannot go past it."""


class DiskQueue:
    """Writes and reads buffers in the order of the calls, while the caller computes.

    Their bytes are in no page cache: direct I/O, or, where the file system has none, small pieces that are dropped as
    soon as they are on disk, or read.
    """

    def __init__(self, descriptor: int) -> None:
        """Prepare for the file open as ``descriptor``, which stays the caller's."""
        self._descriptor = descriptor
        self._direct = _open_direct(descriptor)
        self._jobs: SimpleQueue[tuple[bool, memoryview, int] | None] = SimpleQueue()
        self._changed = threading.Condition()
        self._submitted = self._done = 0
        self._error: OSError | None = None
        threading.Thread(target=self._run, name="memsim-disk", daemon=True).start()

    def write(self, data: memoryview, offset: int) -> int:
        """Queue whole disk blocks; the caller must not change ``data`` before :meth:`wait` for the number returned."""
        return self._submit(True, data, offset)

    def read(self, data: memoryview, offset: int) -> int:
        """Queue a read of whole disk blocks; ``data`` is filled after :meth:`wait` for the number returned."""
        return self._submit(False, data, offset)

    def _submit(self, writing: bool, data: memoryview, offset: int) -> int:
        self._submitted += 1
        self._jobs.put((writing, data, offset))
        return self._submitted

    def is_done(self, number: int) -> bool:
        """Return whether job ``number`` and those before it have ended."""
        return self._done >= number

    def wait(self, number: int) -> None:
        """Return once job ``number`` and those before it have ended.

        Raises:
            InputError: One of them failed.
        """
        if self._done < number:
            with self._changed:
                self._changed.wait_for(lambda: self._done >= number)
        if self._error is not None:
            raise InputError(f"the scratch file failed: {self._error.strerror}") from self._error

    def close(self) -> None:
        """End the thread after what is queued. Nothing may be submitted afterwards."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._work(*job)
            except OSError as error:
                self._error = self._error or error
            del job  # lets go of the buffer
            with self._changed:
                self._done += 1
                self._changed.notify_all()
        if self._direct is not None:
            os.close(self._direct)

    def _work(self, writing: bool, data: memoryview, offset: int) -> None:
        while data:
            try:
                done = self._work_some(writing, data, offset)
            except OSError as error:
                if self._direct is None or error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)  # it opens files for direct I/O, but refuses to do any
                self._direct = None
                continue
            if not done:
                raise OSError(errno.EIO, "it ended early: something cut it short")
            data, offset = data[done:], offset + done

    def _work_some(self, writing: bool, data: memoryview, offset: int) -> int:
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


def _open_direct(descriptor: int) -> int | None:
    """Open the (nameless) file once more, for direct I/O; return None where that cannot be."""
    with suppress(OSError):
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    return None
