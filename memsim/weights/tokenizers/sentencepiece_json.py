"""The ``tokenizer.json`` of a SentencePiece vocabulary (Llama 2, Mistral, Gemma), as transformers makes it.

SentencePiece's BPE keeps no merges: of two neighbouring pieces that are a piece together, the best become one
(sentencepiece's ``bpe_model.cc``). So every way to cut a piece into two others is a merge, the best first; what is left
over is spelled in bytes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPACE = "\u2581"

_MAX_PIECE = 256  # characters; longer ones are not cut
_MAX_MERGES = 1 << 22  # Gemma's 262,144 pieces have some 600,000


def merges_of(pieces: Sequence[str], ranks: Sequence[float], longer_first: bool = True) -> list[tuple[str, str]] | None:
    """Return each way to make one piece of two, the best first; None if there are more than any vocabulary has.

    Args:
        pieces: The vocabulary.
        ranks: Of each; the lowest is the best.
        longer_first: Which of two ways to make pieces of one rank is first: that with the longer left part, or not.
    """
    index, sign = {piece: number for number, piece in enumerate(pieces)}, -1 if longer_first else 1
    ranked: list[tuple[float, int, int, int, str, str]] = []
    for number, piece in enumerate(pieces):
        n_chars = len(piece)
        for cut in range(1, n_chars if n_chars <= _MAX_PIECE else 0):
            left, right = piece[:cut], piece[cut:]
            if left in index and right in index:
                ranked.append((ranks[number], sign * cut, sign * (n_chars - cut), number, left, right))
        if len(ranked) > _MAX_MERGES:
            return None
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def sentencepiece_json(
    pieces: Sequence[str],
    merges: Iterable[tuple[str, str]],
    added: Iterable[Mapping[str, Any]],
    *,
    unknown: str | None,
    space_first: bool,
    in_normalizer: bool,
    normalizers: Iterable[Mapping[str, Any]] = (),
    post_processor: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a ``tokenizer.json``.

    Args:
        pieces: The vocabulary, by id.
        merges: Of ``merges_of``.
        added: Entries of ``added_token``.
        unknown: The piece that stands for what no bytes can spell.
        space_first: Whether a text begins as if a space stood before it; if not in the normalizer, unless one does.
        in_normalizer: Whether spaces are replaced before the text is cut, as Gemma's tokenizer does.
        normalizers: What is done to a text before that.
        post_processor: What is put around a text.
    """
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space_first else []
    before = list(normalizers)
    words = None
    if in_normalizer:
        before += [{"type": "Prepend", "prepend": SPACE}] if space_first else []
        before.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    else:
        scheme = "first" if space_first else "never"
        words = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": list(added),
        "normalizer": {"type": "Sequence", "normalizers": before} if before else None,
        "pre_tokenizer": words,
        "post_processor": post_processor,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": list(merges),
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False)
