"""What is read of the vocabulary of a GGUF file, whatever its tokenizer: tokens, and the types that llama.cpp gives."""

from collections.abc import Mapping

from memsim.weights.readers.gguf_file import Value

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
MERGES, SCORES = "tokenizer.ggml.merges", "tokenizer.ggml.scores"
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5


def texts_of(value: Value | None) -> tuple[str, ...]:
    """Return an array of strings, empty for anything else."""
    texts = value if isinstance(value, tuple) else ()
    return tuple(text for text in texts if isinstance(text, str))


def kinds_of(metadata: Mapping[str, Value], count: int) -> tuple[int, ...] | None:
    """Return llama.cpp's type of each token, None if there is not one for each."""
    kinds = metadata.get(TYPES)
    if not isinstance(kinds, tuple) or len(kinds) != count or not all(type(kind) is int for kind in kinds):
        return None
    return kinds  # type: ignore[return-value]  # all are checked


def id_of(metadata: Mapping[str, Value], name: str, count: int) -> int | None:
    """Return the id of a token that the file names, None unless it is one of ``count``."""
    index = metadata.get(f"tokenizer.ggml.{name}_token_id")
    is_id = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < count
    return index if is_id else None  # type: ignore[return-value]  # is_id holds the check


def begin_id(metadata: Mapping[str, Value], count: int, default: bool) -> int | None:
    """Return the id of the token that begins every text; None if none does.

    Args:
        metadata: Of the file.
        count: Ids are below it.
        default: What holds where the file does not say whether there is one.
    """
    return id_of(metadata, "bos", count) if metadata.get("tokenizer.ggml.add_bos_token", default) is True else None
