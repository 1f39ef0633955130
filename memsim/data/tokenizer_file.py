"""A ``tokenizer.json`` in the process that tokenizes: loaded, and asked for what it puts before a text."""

from pathlib import Path
from typing import Any

import numpy as np

from memsim.data.token_pieces import Encode, Encoded
from memsim.errors import InputError
from memsim.printable import printable
from memsim.reading import open_regular

MAX_TOKENIZER_BYTES = 256 << 20

_PROBES = ("a", "0", ".", "\n")


def load_tokenizer(path: str) -> Any:
    """Return the ``tokenizers.Tokenizer`` in a ``tokenizer.json``, untrusted.

    Raises:
        InputError: It cannot be read, or is none.
    """
    from tokenizers import Tokenizer

    name = f"tokenizer {path}"
    with open_regular(Path(path), name) as file:
        data = file.read(MAX_TOKENIZER_BYTES + 1)
    if len(data) > MAX_TOKENIZER_BYTES:
        raise InputError(f"{name} is larger than {MAX_TOKENIZER_BYTES >> 20} MiB")
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except BaseException as error:  # the library raises bare Exception for every kind of corruption, and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{name} is corrupt: {printable(' '.join(str(error).split()))[:200]}") from error
    # A tokenizer.json saved after use may cut or pad every text to one length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts before every text."""
    for probe in _PROBES:
        encoding = tokenizer.encode(probe)
        own = [index for index, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
        if own:
            return tuple(encoding.ids[: own[0]])
    return ()


def encoder(tokenizer: Any) -> Encode:
    """Return what tokenizes a piece of a text."""

    def encode(text: str) -> Encoded:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        starts = np.fromiter((start for start, _ in encoding.offsets), np.int64, len(encoding.ids))
        return Encoded(np.array(encoding.ids, dtype="<u4"), starts)

    return encode
