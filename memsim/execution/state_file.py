"""The state of a session on disk: one safetensors file, written and read by the worker within its planned memory."""

import mmap
from pathlib import Path

import numpy as np

from memsim.errors import DivergedError, InputError
from memsim.execution.session import Session
from memsim.execution.storage.mapped_weights import Array
from memsim.execution.storage.uncached import UncachedWriter
from memsim.files import atomic_write, sync_directory
from memsim.models.parts import TensorSpec
from memsim.weights.tensor_file import TensorFileWriter, map_file, read_header, view

_BUFFER_BYTES = 1 << 20
_MAX_HEADER_BYTES = 16 << 20
_INFINITY, _NEGATIVE = 0x7F80, 0x8000
_NO_FLUSH = 1 << 62  # nothing of the file is ever in the page cache


def save_state(path: Path, session: Session, step: int) -> str:
    """Write the state of ``session`` after ``step`` steps to ``path``, atomically and durably; return its SHA-256.

    Each array is checked as it is written: what is not finite is not saved, and a file of that name stays as it was.

    Between two steps only. The bytes pass through the arena, in which nothing lives then, and past the page cache: so
    the footprint is what it was.

    Raises:
        DivergedError: An array holds NaN or infinity.
        InputError: The directory cannot be written, or the disk is full.
    """
    specs = {name: TensorSpec(kind.shape, kind.dtype) for name, kind in session.state_types().items()}
    with atomic_write(path) as file:
        out = UncachedWriter(file.fileno(), session.idle_memory()[:_BUFFER_BYTES])
        writer = TensorFileWriter(out, specs, flush_bytes=_NO_FLUSH)
        for name, values in session.state():
            if not _is_finite(values):
                raise overflowed(name, step)
            writer.write(name, values)
        digest = writer.finish()
    sync_directory(path.parent)
    return digest


def load_state(path: Path, session: Session) -> None:
    """Give ``session`` the state in ``path``.

    Raises:
        InputError: The file is damaged, or its arrays are not those of the session.
    """
    entries = read_header(path, _MAX_HEADER_BYTES)
    for name, kind in session.state_types().items():
        entry = entries.get(name)
        if entry is None or (entry.dtype, entry.shape) != (kind.dtype, kind.shape):
            found = "no such array" if entry is None else f"{entry.dtype} {list(entry.shape)}"
            raise InputError(f"{path}: {name} must be {kind}, but there is {found}; it is of another run")
    mapped = map_file(path)
    for name, values in session.state(replacing=True):
        np.copyto(values, view(mapped, entries[name]))
        mapped.madvise(mmap.MADV_DONTNEED)


def overflowed(name: str, step: int) -> DivergedError:
    """Return the error of an array of the state that holds NaN or infinity after ``step`` steps."""
    return DivergedError(f"an update up to step {step} overflowed: {name} is not finite; lower --lr")


def not_finite(session: Session) -> str | None:
    """Return the name of the first array of the state that holds NaN or infinity, if there is one."""
    return next((name for name, values in session.state() if not _is_finite(values)), None)


def _is_finite(values: Array) -> bool:
    # Two reductions, since np.isfinite would make an array that no plan knows of.
    if values.dtype == np.uint16:  # the bits of bf16: infinity and NaN have the largest magnitudes of either sign
        return bool(values.view(np.int16).max() < _INFINITY and values.max() < _NEGATIVE | _INFINITY)
    return bool(np.isfinite(values.min()) and np.isfinite(values.max()))
