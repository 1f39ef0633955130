"""Windows of a text for calibrating a pack and measuring its loss: spread evenly over it, in the model's own tokens."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.data.tokenize import prepare_tokens
from memsim.data.tokenizer_choice import ChosenTokenizer
from memsim.data.windows import TokenFile
from memsim.errors import InputError
from memsim.files import write_text
from memsim.weights.readers.source import Checkpoint
from memsim.weights.tokenizers.directory_tokenizer import TOKENIZER_FILE

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
        directory, found = Path(name), checkpoint.tokenizer()
        if found.text is None:
            raise InputError(f"{what} needs the model's tokens, but it has no tokenizer: {found.origin}")
        write_text(directory / TOKENIZER_FILE, found.text)
        vocab_size = checkpoint.config.vocab_size
        chosen = ChosenTokenizer(directory / TOKENIZER_FILE, found.origin, None)
        used = prepare_tokens(
            text,
            chosen,
            directory / "ids",
            vocab_size=vocab_size,
            seq_len=WINDOW_TOKENS,
            eos_id=checkpoint.eos_token_id,
        ).tokenizer
        tokens = TokenFile(directory / "ids", vocab_size, used.begin_ids[0] if used.every_window else None)
        n_windows = tokens.n_windows(WINDOW_TOKENS)
        places = np.unique(np.linspace(0, n_windows - 1, min(n_windows, MOST_WINDOWS)).astype(np.int64))
        pairs = (tokens.window(int(index), WINDOW_TOKENS) for index in places)
        return [(np.array(ids), np.array(labels)) for ids, labels in pairs]
