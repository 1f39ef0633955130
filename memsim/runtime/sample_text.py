"""Windows of a text for calibrating a pack and measuring its loss: spread evenly over it, in the model's own tokens."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.files import write_text
from memsim.runtime.data import TokenFile
from memsim.runtime.tokenize import prepare_tokens
from memsim.weights.source import TOKENIZER_FILES, Checkpoint

WINDOW_TOKENS = 256
MOST_WINDOWS = 32

Windows = list[tuple[NDArray[np.uint32], NDArray[np.uint32]]]
"""(ids, labels) of each window."""


def sample_windows(text: Path, checkpoint: Checkpoint, what: str) -> Windows:
    """Return at most MOST_WINDOWS windows of ``text``.

    Args:
        text: UTF-8, or JSONL.
        checkpoint: Whose tokenizer counts.
        what: The option that asked, for messages.

    Raises:
        InputError: The text cannot be read or is too short, or the checkpoint has no tokenizer that is understood.
    """
    with tempfile.TemporaryDirectory(prefix="memsim-") as name:
        directory = Path(name)
        tokenizer = checkpoint.directory / TOKENIZER_FILES[0]
        if not tokenizer.is_file():
            made = checkpoint.tokenizer()
            if made is None:
                raise InputError(f"{what} needs the model's tokens: put its tokenizer.json into {checkpoint.directory}")
            tokenizer = directory / TOKENIZER_FILES[0]
            write_text(tokenizer, made)
        vocab_size = checkpoint.config.vocab_size
        prepare_tokens(
            text, tokenizer, directory / "ids", vocab_size=vocab_size, seq_len=WINDOW_TOKENS,
            eos_id=checkpoint.eos_token_id,
        )  # fmt: skip
        tokens = TokenFile(directory / "ids", vocab_size)
        n_windows = tokens.n_windows(WINDOW_TOKENS)
        chosen = np.unique(np.linspace(0, n_windows - 1, min(n_windows, MOST_WINDOWS)).astype(np.int64))
        pairs = (tokens.window(int(index), WINDOW_TOKENS) for index in chosen)
        return [(np.array(ids), np.array(labels)) for ids, labels in pairs]
