"""Reading and writing a file in a thread of its own, past the page cache."""

import threading
from queue import SimpleQueue

from memsim.errors import InputError
from memsim.execution.storage.uncached import UncachedFile


class DiskQueue:
    """Writes and reads buffers in the order of the calls, while the caller computes.

    Their bytes are in no page cache; see ``UncachedFile``.
    """

    def __init__(self, descriptor: int) -> None:
        """Prepare for the file open as ``descriptor``, which stays the caller's."""
        self._file = UncachedFile(descriptor)
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
                writing, data, offset = job
                (self._file.write if writing else self._file.read)(data, offset)
            except OSError as error:
                self._error = self._error or error
            del job, data  # lets go of the buffer
            with self._changed:
                self._done += 1
                self._changed.notify_all()
        self._file.close()
