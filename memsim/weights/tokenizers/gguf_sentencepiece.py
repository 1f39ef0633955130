"""The ``tokenizer.json`` of a GGUF file with a SentencePiece vocabulary (Llama 2, Mistral, Gemma).

llama.cpp calls that model ``llama``. Its file has a score for each piece, and no merges: of two neighbouring pieces
that are a piece together, those with the highest score become one (sentencepiece's ``bpe_model.cc``). So every way to
cut a piece into two others is a merge, in the order of the scores; what is left over is spelled in bytes.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from memsim.weights.readers.gguf_file import Value
from memsim.weights.tokenizers.gguf_vocabulary import CONTROL, TOKENS, TYPES, USER_DEFINED, added_tokens, texts_of

SCORES = "tokenizer.ggml.scores"

_NORMAL, _UNKNOWN = 1, 2
_SPACE = "\u2581"
_MAX_PIECE = 256  # characters; longer ones are not cut
_MAX_MERGES = 1 << 22  # Gemma's 262,144 pieces have some 600,000


def sentencepiece_tokenizer(metadata: Mapping[str, Value]) -> str | None:
    """Return the text of a ``tokenizer.json``, or None if there is not all that it takes.

    Args:
        metadata: Of a GGUF file, untrusted, with tokens, types and scores.
    """
    tokens = texts_of(metadata.get(TOKENS))
    kinds, scores = metadata.get(TYPES), metadata.get(SCORES)
    if not tokens or not _is_of(kinds, int, len(tokens)) or not _is_of(scores, float, len(tokens)):
        return None
    assert isinstance(kinds, tuple) and isinstance(scores, tuple)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next((tokens[index] for index, kind in enumerate(kinds) if kind == _UNKNOWN), None)
    pieces = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (_NORMAL, USER_DEFINED)]
    merges = _merges(pieces, {token: float(score) for token, score in zip(tokens, scores, strict=True)}, vocabulary)
    if len(vocabulary) < len(tokens) or unknown is None or merges is None:
        return None
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepend else []
    tokenizer = {
        "version": "1.0",
        "added_tokens": added_tokens(tokens, kinds, (CONTROL, USER_DEFINED, _UNKNOWN), (CONTROL, _UNKNOWN)),
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spaces]},
        "post_processor": _beginning(metadata, tokens),
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False)


def _is_of(value: Value | None, kind: type[float] | type[int], count: int) -> bool:
    """Return whether an untrusted value is an array of ``count`` finite numbers of a kind."""
    if not isinstance(value, tuple) or len(value) != count:
        return False
    return all(not isinstance(item, str) and isinstance(item, kind) and isfinite(item) for item in value)


def _merges(
    pieces: Sequence[str], scores: Mapping[str, float], vocabulary: Mapping[str, int]
) -> list[tuple[str, str]] | None:
    """Return each way to make one piece of two, the best first; None if there are more than any vocabulary has.

    Equal scores are ordered as transformers orders them: longer left parts first.
    """
    known, ranked = set(pieces), []
    for piece in pieces:
        for cut in range(1, len(piece) if len(piece) <= _MAX_PIECE else 0):
            left, right = piece[:cut], piece[cut:]
            if left in known and right in known:
                ranked.append((-scores[piece], -cut, vocabulary[piece], left, right))
        if len(ranked) > _MAX_MERGES:
            return None
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _beginning(metadata: Mapping[str, Value], tokens: Sequence[str]) -> dict[str, Any] | None:
    """Return what puts the token that begins a text before it, if the file says that there is one."""
    index = metadata.get("tokenizer.ggml.bos_token_id")
    known = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(tokens)
    if not known or not metadata.get("tokenizer.ggml.add_bos_token", True):
        return None
    assert isinstance(index, int)
    first = {"SpecialToken": {"id": tokens[index], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {tokens[index]: {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]}},
    }
