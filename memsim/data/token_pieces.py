"""A long text tokenized in pieces, to the ids of the whole.

A tokenizer may look at more than a piece: it may put a space before the text, join characters across the place where a
piece ends, or merge pieces of words for as long as no space comes. So neighbouring pieces share some text, and the ids
of one go on with those of the next where both agree on the tokens in the middle of what they share. Where they do not,
as within a run of a thousand spaces, the piece is made longer.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memsim.data.windows import Ids

PIECE_CHARS = 1 << 16
SHARED_CHARS = 1 << 12

_FEWEST_AGREED = 4


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized piece.

    Attributes:
        ids: [n].
        starts: [n] where each token starts, in characters of the piece.
    """

    ids: Ids
    starts: npt.NDArray[np.int64]


Encode = Callable[[str], Encoded]


def ids_of_whole(
    chunks: Iterable[str], encode: Encode, size: int = PIECE_CHARS, shared: int = SHARED_CHARS
) -> Iterator[Ids]:
    """Yield the ids of the text that ``chunks`` make together, a piece at a time.

    Args:
        chunks: The text.
        encode: Tokenizes a piece, without what the tokenizer adds around a text.
        size: Characters of a piece.
        shared: Characters that neighbouring pieces share, below ``size``.
    """
    text = _Buffer(chunks)
    length, first = size, 0  # of the piece, and the first of its tokens that is not out yet
    piece = encode(text.first(length))
    while text.has_more(length):
        start = length - shared
        following = encode(text.slice(start, start + max(size, 2 * shared)))
        seam = _seam(piece, following, start, shared)
        if seam is None:
            # The tokens before the seam with the piece before are the same: they are far from the end.
            length *= 2
            piece = encode(text.first(length))
            continue
        here, there = seam
        yield piece.ids[first:here]
        text.drop(start)
        piece, first, length = following, there, max(size, 2 * shared)
    yield piece.ids[first:]


def _seam(before: Encoded, after: Encoded, start: int, shared: int) -> tuple[int, int] | None:
    """Return the token of each of two pieces with which the second takes over; None if they do not agree.

    Args:
        before: The first piece.
        after: The second one.
        start: Where the second one starts, in characters of the first.
        shared: How many characters they share.
    """
    low, high = shared // 4, shared - shared // 4
    here = np.flatnonzero((before.starts >= start + low) & (before.starts < start + high))
    there = np.flatnonzero((after.starts >= low) & (after.starts < high))
    if len(here) != len(there) or len(here) < _FEWEST_AGREED:
        return None
    if not np.array_equal(before.ids[here], after.ids[there]):
        return None
    if not np.array_equal(before.starts[here] - start, after.starts[there]):
        return None
    middle = len(here) // 2
    return int(here[middle]), int(there[middle])


class _Buffer:
    """Text that is read as it is needed, and dropped when it is done."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self._chunks = iter(chunks)
        self._text = ""

    def first(self, length: int) -> str:
        return self.slice(0, length)

    def slice(self, start: int, end: int) -> str:
        self._fill(end)
        return self._text[start:end]

    def has_more(self, length: int) -> bool:
        self._fill(length + 1)
        return len(self._text) > length

    def drop(self, length: int) -> None:
        self._text = self._text[length:]

    def _fill(self, length: int) -> None:
        parts, n_chars = [self._text], len(self._text)
        while n_chars < length:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            parts.append(chunk)
            n_chars += len(chunk)
        self._text = "".join(parts)
