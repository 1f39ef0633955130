"""Files of labelled windows: what the capped worker reads of a task. ``tokenize_task`` writes them elsewhere.

A file is little-endian uint32, one record a window: 1 or 0 for whether its option is the right one, ``seq_len`` ids and
``seq_len`` labels. Records of one example follow each other.
"""

from pathlib import Path

import numpy as np

from memsim.data.windows import IGNORED, TOKEN_BYTES, Ids, map_ids
from memsim.errors import InputError


def record_words(seq_len: int) -> int:
    """Return the words of one record."""
    return 1 + 2 * seq_len


class ExampleFile:
    """A read-only map of labelled windows.

    Attributes:
        n_options: Windows of an example.
    """

    def __init__(
        self,
        path: Path,
        vocab_size: int,
        n_labels: int,
        seq_len: int,
        n_options: int = 1,
        end_id: int | None = None,
        one_label: bool = False,
    ) -> None:
        """Map ``path``, untrusted; ids are below ``vocab_size`` and labels below ``n_labels``.

        With ``end_id`` a window is what comes before its padding, the last such token included; otherwise padding is
        part of it. With ``one_label`` it has the one label that is given, and not one for each token.

        Raises:
            InputError: It cannot be read, or is not a whole number of examples.
        """
        words = map_ids(path)
        if words.size % (record_words(seq_len) * n_options):
            example = record_words(seq_len) * n_options * TOKEN_BYTES
            raise InputError(f"example file {path} has {words.nbytes} bytes, not a multiple of {example}")
        self._records = words.reshape(-1, record_words(seq_len))
        self._path, self._vocab_size, self._n_labels, self._seq_len = path, vocab_size, n_labels, seq_len
        self._end_id, self._one_label = end_id, one_label
        self.n_options = n_options

    def n_windows(self, seq_len: int) -> int:
        """Return how many windows there are, all of the ``seq_len`` of the file."""
        return len(self._records)

    def check(self, seq_len: int) -> None:
        """There is at least one window."""

    def window(self, index: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return (ids, labels) of one window, each [seq_len], or shorter: the latter of one label, both of padding.

        Raises:
            InputError: An id or a label is beyond what it counts, or a window has no end or no label.
            IndexError: There is no such window.
        """
        if not 0 <= index < len(self._records) or seq_len != self._seq_len:
            raise IndexError(f"window {index} of {len(self._records)}, {self._seq_len} tokens each")
        ids, labels = self._records[index, 1 : 1 + seq_len], self._records[index, 1 + seq_len :]
        given = labels[labels != IGNORED]
        if int(ids.max()) >= self._vocab_size or int(given.max(initial=0)) >= self._n_labels:
            raise InputError(
                f"example file {self._path} holds an id or a label in window {index} beyond the vocabulary of "
                f"{self._vocab_size} or {self._n_labels} labels; tokenize the examples again"
            )
        if self._end_id is not None:
            ends = np.flatnonzero(ids == self._end_id)
            if not len(ends) or not len(given):
                raise InputError(f"example file {self._path}: window {index} has no end or no label; tokenize it again")
            ids, labels = ids[: ends[-1] + 1], labels[: ends[-1] + 1]
        return ids, given[:1] if self._one_label else labels

    def is_right(self, index: int) -> bool:
        """Return whether window ``index`` is that of the right option."""
        return bool(np.equal(self._records[index, 0], 1))
