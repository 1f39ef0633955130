"""Token files: what the capped worker reads. ``memsim.data.tokenize`` writes them, in another process."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from memsim.errors import InputError, UsageError
from memsim.reading import open_regular

TOKEN_BYTES = 4
IGNORED = 0xFFFFFFFF
"""The label of a token that has none: it counts in no loss and no accuracy."""

Ids = npt.NDArray[np.uint32]


def check_length(n_tokens: int, seq_len: int, name: str) -> None:
    """Check that a text holds one sequence: ``seq_len`` inputs, each with the next token as its label.

    Raises:
        InputError: It has fewer than ``seq_len`` + 1 tokens.
    """
    if n_tokens < seq_len + 1:
        raise InputError(
            f"{name} has {n_tokens} tokens, but one sequence needs {seq_len + 1} (--seq-len {seq_len} and one label); "
            f"use a longer text or a shorter --seq-len"
        )


def map_ids(path: Path) -> Ids:
    """Return the read-only map [n] of a file of little-endian uint32.

    Raises:
        InputError: It cannot be read, is empty, or is not a whole number of ids.
    """
    try:
        with open_regular(path, f"token file {path}") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes == 0 or n_bytes % TOKEN_BYTES:
                raise InputError(f"token file {path} has {n_bytes} bytes, not a positive multiple of {TOKEN_BYTES}")
            # A view, not the memmap itself, which costs every kernel call four times as much to pass.
            return np.memmap(file, dtype="<u4", mode="r", shape=(n_bytes // TOKEN_BYTES,)).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot map token file {path}: {error}") from error


class Windows(Protocol):
    """Training or evaluation data: windows of ids and labels, each uint32 [seq_len]; a label may be ``IGNORED``."""

    def check(self, seq_len: int) -> None:
        """Raise InputError if there is not one window."""

    def n_windows(self, seq_len: int) -> int:
        """Return how many there are."""

    def window(self, index: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return (ids, labels) of one; fewer ids than ``seq_len`` are padded."""


class TokenFile:
    """A read-only map of little-endian uint32 token ids, cut into windows that do not overlap.

    Attributes:
        tokens: [n_tokens] uint32, a plain view of the map: pages are read when touched and the kernel may drop them.
    """

    def __init__(self, path: Path, vocab_size: int, begin_id: int | None = None) -> None:
        """Map ``path``, untrusted.

        Args:
            path: The file.
            vocab_size: Ids are below it.
            begin_id: What every window begins with, as every document of the file does; None for nothing.

        Raises:
            InputError: It cannot be read, is empty, or is not a whole number of ids.
        """
        self.tokens = map_ids(path)
        self._path = path
        self._vocab_size = vocab_size
        self._begin_id = begin_id

    def check(self, seq_len: int) -> None:
        """Check that there is one window.

        Raises:
            InputError: The file is shorter than one sequence.
        """
        check_length(len(self.tokens), seq_len, "the token file")

    def n_windows(self, seq_len: int) -> int:
        """Return how many windows of ``seq_len`` inputs there are; the last token of the text is only ever a label."""
        return (len(self.tokens) - 1) // seq_len

    def window(self, index: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return (ids, labels) of one window, each [seq_len]: labels are ids one token later.

        Without a token that begins every window they are views of the map. With one, it stands where the window before
        has its last label, so that every token of the text is a label once.

        Raises:
            InputError: An id is beyond the vocabulary, so that the embedding and the loss would read past their ends.
            IndexError: There is no such window.
        """
        if not 0 <= index < self.n_windows(seq_len):
            raise IndexError(f"window {index} of {self.n_windows(seq_len)}")
        start = index * seq_len
        if self._begin_id is not None and self.tokens[start + 1] == self._begin_id:
            # A document begins here: the window begins with it, if the file goes on for so long.
            start += start + seq_len + 1 < len(self.tokens)
        span = self.tokens[start : start + seq_len + 1]
        largest = int(span.max())
        if largest >= self._vocab_size:
            raise InputError(
                f"token file {self._path} holds id {largest} in window {index}, beyond the vocabulary of "
                f"{self._vocab_size}; tokenize the text again"
            )
        if self._begin_id is None or self._begin_id in span[:2]:
            return span[:-1], span[1:]
        return np.concatenate(([self._begin_id], span[1:-1]), dtype=np.uint32, casting="unsafe"), span[1:]


class Batches:
    """The training windows in a seeded order: every window once an epoch, in another order each epoch.

    The window of a step depends on the seed and the step alone, so a resumed run continues where it stopped.
    """

    def __init__(self, file: Windows, seq_len: int, seed: int) -> None:
        """Order the windows of ``file``.

        Raises:
            InputError: The file is shorter than one sequence.
            UsageError: ``seq_len`` is below 1 or ``seed`` below 0.
        """
        if seq_len < 1:
            raise UsageError(f"--seq-len {seq_len} is below 1")
        if seed < 0:
            raise UsageError(f"--seed {seed} is below 0")
        file.check(seq_len)
        self._file = file
        self._seq_len = seq_len
        self._seed = seed
        self._epoch = -1
        self._order: Ids = np.empty(0, dtype=np.uint32)

    def index(self, step: int) -> int:
        """Return the window that ``step`` (from 0; with accumulation, counted in micro-steps) trains on."""
        epoch, position = divmod(step, self._file.n_windows(self._seq_len))
        if epoch != self._epoch:
            # Four bytes a window, shuffled in place: this memory is under the cap.
            self._order = np.arange(self._file.n_windows(self._seq_len), dtype=np.uint32)
            np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, epoch)))).shuffle(self._order)
            self._epoch = epoch
        return int(self._order[position])

    def batch(self, step: int) -> tuple[Ids, Ids]:
        """Return (ids, labels) of ``step``, as ``Windows.window`` does."""
        return self._file.window(self.index(step), self._seq_len)
