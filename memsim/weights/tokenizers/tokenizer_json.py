"""What a ``tokenizer.json`` is made of, for models whose files hold no such file but all that it says.

The pieces are those of the models' own tokenizer.json, which the tokenizers library reads.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@dataclass(frozen=True, slots=True)
class FoundTokenizer:
    """The tokenizer of a checkpoint.

    Attributes:
        text: Of its ``tokenizer.json``; None if it has none that memsim can use.
        origin: What it was read from; without one, what was found in its place.
    """

    text: str | None
    origin: str


def added_token(index: int, content: str, special: bool) -> dict[str, Any]:
    """Return the entry of a token that is found in a text before it is cut; a special one is no text."""
    return {"id": index, "content": content, "special": special, **_PLAIN}


def beginning(token: str, index: int) -> dict[str, Any]:
    """Return the post-processor that puts ``token`` before a text."""
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


def byte_level(
    vocabulary: Mapping[str, int],
    merges: Iterable[str],
    added: Iterable[Mapping[str, Any]],
    *,
    split: str | None,
    normalizer: str | None = None,
    whole_words: bool = False,
    space_first: bool = False,
    post_processor: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a ``tokenizer.json`` of byte-level BPE.

    Args:
        vocabulary: Token to id, in the letters that stand for bytes.
        merges: Pairs with a space between, the best first.
        added: Entries of ``added_token``.
        split: The expression that cuts a text into words; None is GPT-2's.
        normalizer: Its type, such as ``NFC``.
        whole_words: Whether a word of the vocabulary is taken whole, whatever the merges say.
        space_first: Whether a text begins as if a space stood before it.
        post_processor: What is put around a text.
    """
    by_bytes = {"type": "ByteLevel", "add_prefix_space": space_first, "trim_offsets": False, "use_regex": split is None}
    words: dict[str, Any] = by_bytes
    if split is not None:
        cut = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        words = {"type": "Sequence", "pretokenizers": [cut, by_bytes]}
    tokenizer = {
        "version": "1.0",
        "added_tokens": list(added),
        "normalizer": {"type": normalizer} if normalizer else None,
        "pre_tokenizer": words,
        "post_processor": post_processor,
        "decoder": by_bytes,
        "model": {"type": "BPE", "ignore_merges": whole_words, "vocab": vocabulary, "merges": list(merges)},
    }
    return json.dumps(tokenizer, ensure_ascii=False)
