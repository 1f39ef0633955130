"""What a pack is made of: the tensors of a checkpoint, whatever its format, each read by rows."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.ir.matrix_format import MatrixFormat
from memsim.models.config import ModelConfig
from memsim.reading import drop_pages, open_regular
from memsim.weights.quantize import Grid
from memsim.weights.tokenizers.tokenizer_json import FoundTokenizer


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a tensor.

    Attributes:
        values: Float32 [count, K], in a pack's convention: norm weights are what a norm multiplies with.
        grid: The same values as the levels that the source stores, when it does.
    """

    values: NDArray[np.float32]
    grid: Grid | None = None


class RowReader(Protocol):
    """Reads one tensor's rows, in any order, dropping the pages of the file that it has read."""

    def read(self, first: int, count: int) -> Chunk:
        """Return rows ``first`` ... ``first + count - 1``.

        Raises:
            InputError: The file ends too early.
        """


class SourceTensor(Protocol):
    """One tensor of a checkpoint, checked to have the expected shape and a type that we read."""

    @property
    def name(self) -> str:
        """Hugging Face's name."""

    @property
    def stored(self) -> str:
        """What its file holds: ``bf16``, ``q4_0``, ..."""

    @property
    def format(self) -> MatrixFormat | None:
        """The smallest format that keeps what its file holds: its levels, or 8 bits; None for floats."""

    @property
    def rows(self) -> tuple[int, int]:
        """Its shape as a matrix; a vector is one row."""

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""

    def open(self) -> AbstractContextManager[RowReader]:
        """Open its file for reading by rows.

        Raises:
            InputError: It cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked model in somebody's format.

    Attributes:
        directory: Where it is, with its tokenizer's files.
        config: The model's dimensions.
        eos_token_id: End-of-text token, if the checkpoint names one inside the vocabulary.
        tensors: (part, our tensor name) -> source.
        tokenizer: Reads its tokenizer, or says what it has in the place of one.
    """

    directory: Path
    config: ModelConfig
    eos_token_id: int | None
    tensors: Mapping[tuple[str, str], SourceTensor]
    tokenizer: Callable[[], FoundTokenizer]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors that a pack needs."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())


class Placed(Protocol):
    """Where a tensor lies in its file: what a header says of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""

    @property
    def n_bytes(self) -> int:
        """Its size."""


Entry = TypeVar("Entry", bound=Placed)


@dataclass(frozen=True, slots=True)
class OneFileTensor(ABC, Generic[Entry]):
    """A ``SourceTensor`` whose bytes lie together in one file.

    Attributes:
        name: Hugging Face's name.
        path: The file.
        entry: Its place there.
    """

    name: str
    path: Path
    entry: Entry

    @property
    def rows(self) -> tuple[int, int]:
        """Its shape as a matrix; a vector is one row."""
        return as_rows(self.entry.shape)

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return self.entry.n_bytes

    @abstractmethod
    def reader(self, descriptor: int) -> RowReader:
        """Return what reads its rows from its open file."""

    @contextmanager
    def open(self) -> Iterator[RowReader]:
        """Open its file for reading by rows.

        Raises:
            InputError: It cannot be read.
        """
        with opened(self.path) as descriptor:
            yield self.reader(descriptor)


def as_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a tensor's shape as a matrix; a vector is one row."""
    return (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0])


def eos_in(value: object, config: ModelConfig) -> int | None:
    """Return the untrusted end-of-text token ``value``, or None unless it is one of the vocabulary."""
    is_id = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < config.vocab_size
    return value if is_id else None  # type: ignore[return-value]  # is_id holds the check


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of ``path``, open for reading.

    Raises:
        InputError: It cannot be opened, or read inside the ``with``.
    """
    try:
        with open_regular(path) as file:
            yield file.fileno()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_at(descriptor: int, offset: int, buffer: NDArray[np.uint8], what: str) -> None:
    """Fill ``buffer`` from byte ``offset`` of an open file, and drop the file's pages from memory.

    Args:
        descriptor: Open for reading.
        offset: From the beginning of the file.
        buffer: Contiguous.
        what: What the error message calls the tensor and its file.

    Raises:
        InputError: The file ends too early.
    """
    view, done = buffer.reshape(-1).data, 0
    while done < len(view):
        n_bytes = os.preadv(descriptor, [view[done:]], offset + done)
        if n_bytes == 0:
            raise InputError(f"{what} ends too early; it was truncated meanwhile")
        done += n_bytes
    drop_pages(descriptor, offset, len(view))
