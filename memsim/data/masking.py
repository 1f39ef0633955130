"""Masked language modelling: windows of a token file with a few tokens hidden, which alone have labels.

As RoBERTa was trained (https://arxiv.org/abs/1907.11692, section 2.3): of 15 % of the tokens, 80 % become the mask,
10 % a random word, and 10 % stay. Which ones depends on the seed and the window's index alone.
"""

from pathlib import Path

import numpy as np

from memsim.data.windows import IGNORED, Ids, TokenFile
from memsim.errors import InputError
from memsim.json_file import read_object

MASK_TOKEN = "<mask>"
SHARE, TO_MASK, TO_RANDOM = 0.15, 0.8, 0.9

_MAX_TOKENIZER_BYTES = 64 << 20
_STREAM = (1,)  # apart from the random streams of adapters and of the order of windows


def mask_token_id(tokenizer: Path | None, vocab_size: int) -> int:
    """Return the id that stands for a hidden token.

    Args:
        tokenizer: The model's ``tokenizer.json``, untrusted; None where ids are bytes, far below the last id.
        vocab_size: Ids are below it.

    Raises:
        InputError: The tokenizer has no such token, or one beyond the vocabulary.
    """
    if tokenizer is None:
        return vocab_size - 1
    added = read_object(tokenizer, _MAX_TOKENIZER_BYTES).get("added_tokens")
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    found = next((token.get("id") for token in tokens if token.get("content") == MASK_TOKEN), None)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < vocab_size:
        raise InputError(
            f"{tokenizer} has no added token {MASK_TOKEN} within the vocabulary of {vocab_size}, which masked language "
            f"modelling needs; use the tokenizer.json that belongs to the model"
        )
    return found


class MaskedTokens:
    """Windows of a token file, each between a first and a last token of its own, with hidden tokens to guess.

    Attributes:
        tokens: Of the file.
    """

    def __init__(self, file: TokenFile, vocab_size: int, mask_id: int, ends: tuple[int, int], seed: int) -> None:
        """Mask the windows of ``file``.

        Args:
            file: The text.
            vocab_size: Random words are below it, and above the special tokens that come first.
            mask_id: Stands for a hidden token.
            ends: The first and the last token of a window; the last one, between two texts too, is never hidden.
            seed: Of what is hidden.
        """
        self.tokens = file.tokens
        self._file = file
        self._vocab_size = vocab_size
        self._mask_id = mask_id
        self._ends = ends
        self._seed = seed

    def check(self, seq_len: int) -> None:
        """Check that there is one window; its ends are not in the text.

        Raises:
            InputError: The file is shorter than that.
        """
        self._file.check(seq_len - 2)

    def n_windows(self, seq_len: int) -> int:
        """Return how many windows of ``seq_len`` tokens there are, two of them being the ends."""
        return self._file.n_windows(seq_len - 2)

    def window(self, index: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return (ids, labels) of one window, each [seq_len]: a label is IGNORED where no token was to be guessed.

        Raises:
            InputError: An id is beyond the vocabulary.
            IndexError: There is no such window.
        """
        words, _ = self._file.window(index, seq_len - 2)
        ids = np.concatenate(([self._ends[0]], words, [self._ends[1]]), dtype=np.uint32, casting="unsafe")
        labels = np.full(seq_len, IGNORED, np.uint32)
        generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence((self._seed, index), spawn_key=_STREAM))
        )
        candidates = 1 + np.flatnonzero(words != self._ends[1])
        hidden = generator.permutation(candidates)[: max(1, round(SHARE * len(candidates)))]
        labels[hidden] = ids[hidden]
        kind, first_word = generator.random(len(hidden)), max(self._ends) + 1
        ids[hidden[kind < TO_MASK]] = self._mask_id
        words_instead = generator.integers(min(first_word, self._vocab_size - 1), self._vocab_size, len(hidden))
        is_random = (kind >= TO_MASK) & (kind < TO_RANDOM)
        ids[hidden[is_random]] = words_instead[is_random]
        return ids, labels
