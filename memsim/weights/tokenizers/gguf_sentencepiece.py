"""The ``tokenizer.json`` of a GGUF file with a SentencePiece vocabulary, which llama.cpp calls ``llama``.

The file has a score for each piece, and no merges. Gemma's scores do not follow the order in which its pieces
were learned, but their ids do, and its runs of spaces are stored as spaces.
"""

from collections.abc import Mapping
from math import isfinite

from memsim.weights.readers.gguf_file import Value
from memsim.weights.tokenizers.gguf_vocabulary import (
    CONTROL,
    SCORES,
    TOKENS,
    UNKNOWN,
    USER_DEFINED,
    begin_id,
    id_of,
    kinds_of,
    texts_of,
)
from memsim.weights.tokenizers.sentencepiece_json import SPACE, merges_of, sentencepiece_json
from memsim.weights.tokenizers.tokenizer_json import FoundTokenizer, added_token, beginning


def gguf_sentencepiece(metadata: Mapping[str, Value], name: str) -> FoundTokenizer:
    """Return the tokenizer, or what the file has in its place.

    Args:
        metadata: Of a GGUF file, untrusted, with its whole vocabulary.
        name: Of the file, for messages.
    """
    tokens = texts_of(metadata.get(TOKENS))
    kinds, ranks = kinds_of(metadata, len(tokens)), _ranks(metadata, len(tokens))
    is_gemma = metadata.get("general.architecture") in ("gemma", "gemma2", "gemma3")
    pieces = [_spelled(token) for token in tokens] if is_gemma else list(tokens)
    if not tokens or kinds is None or len(set(pieces)) < len(pieces):
        return FoundTokenizer(None, f"{name} has {len(set(pieces))} different tokens with types, of {len(tokens)}")
    if is_gemma:
        ranks = list(range(len(pieces)))
    merges = merges_of(pieces, ranks) if ranks else None
    if merges is None:
        return FoundTokenizer(None, f"{name} has no usable scores of its {len(tokens)} pieces (tokenizer.ggml.scores)")
    unknown = id_of(metadata, "unknown", len(tokens))
    if unknown is None:
        unknown = next((index for index, kind in enumerate(kinds) if kind == UNKNOWN), None)
    begin = begin_id(metadata, len(tokens), True)
    text = sentencepiece_json(
        pieces,
        merges,
        [
            added_token(index, pieces[index], kind != USER_DEFINED)
            for index, kind in enumerate(kinds)
            # Runs of spaces are made by merges: a token that is found first would cut them elsewhere.
            if kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and pieces[index] == tokens[index])
        ],
        unknown=None if unknown is None else pieces[unknown],
        space_first=not is_gemma and metadata.get("tokenizer.ggml.add_space_prefix", True) is True,
        in_normalizer=is_gemma,
        post_processor=None if begin is None else beginning(pieces[begin], begin),
    )
    return FoundTokenizer(text, f"the metadata of {name} (llama)")


def _spelled(token: str) -> str:
    """Return a token as Gemma's own tokenizer spells it."""
    return SPACE * len(token) if token and not token.strip(" ") else token


def _ranks(metadata: Mapping[str, Value], count: int) -> list[float] | None:
    """Return a rank for each piece, the lowest the best: None if there is not a finite score for each."""
    scores = metadata.get(SCORES)
    if not isinstance(scores, tuple) or len(scores) != count:
        return None
    if not all(isinstance(score, float) and isfinite(score) for score in scores):
        return None
    return [-float(score) for score in scores]
