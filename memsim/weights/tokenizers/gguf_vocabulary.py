"""What is read of the vocabulary of a GGUF file, whatever its tokenizer: tokens, and the types that llama.cpp gives."""

from collections.abc import Sequence
from typing import Any

from memsim.weights.readers.gguf_file import Value

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
CONTROL, USER_DEFINED = 3, 4


def texts_of(value: Value | None) -> tuple[str, ...]:
    """Return an array of strings, empty for anything else."""
    texts = value if isinstance(value, tuple) else ()
    return tuple(text for text in texts if isinstance(text, str))


def added_tokens(
    tokens: Sequence[str], kinds: Sequence[object], found: tuple[int, ...], special: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Return the entries of tokens that are found in a text before it is cut.

    Args:
        tokens: The vocabulary.
        kinds: llama.cpp's type of each.
        found: The types that are.
        special: Those of them that are no text.
    """
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, "special": kind in special, **plain}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in found
    ]
