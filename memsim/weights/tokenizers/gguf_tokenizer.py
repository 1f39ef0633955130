"""The ``tokenizer.json`` of a GGUF file, from its metadata: byte-level BPE, as Qwen and Llama 3 have it.

llama.cpp calls that model ``gpt2``, and names how text is cut before it (``tokenizer.ggml.pre``); the expressions are
those of the models' own tokenizer.json. ``gguf_sentencepiece`` has the other model.
"""

import json
from pathlib import Path

from memsim.weights.readers.gguf_file import read_gguf_header
from memsim.weights.tokenizers.gguf_sentencepiece import SCORES, sentencepiece_tokenizer
from memsim.weights.tokenizers.gguf_vocabulary import CONTROL, TOKENS, TYPES, USER_DEFINED, added_tokens, texts_of

_MERGES = "tokenizer.ggml.merges"
_UNUSED = 5
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Name of the way to cut -> expression, normalizer, and whether a word of the vocabulary is taken whole.
_CUTS: dict[str, tuple[str, dict[str, str] | None, bool]] = {
    "qwen2": (_WORDS.format(digits=""), {"type": "NFC"}, False),
    "llama-bpe": (_WORDS.format(digits="{1,3}"), None, True),
}


def gguf_tokenizer(path: Path) -> str | None:
    """Return the text of a ``tokenizer.json``, or None if the file's tokenizer is of another kind.

    Raises:
        InputError: The file is malformed.
    """
    metadata = read_gguf_header(path, frozenset({TOKENS, _MERGES, TYPES, SCORES})).metadata
    if metadata.get("tokenizer.ggml.model") == "llama":
        return sentencepiece_tokenizer(metadata)
    cut = metadata.get("tokenizer.ggml.pre")
    tokens, merges = texts_of(metadata.get(TOKENS)), texts_of(metadata.get(_MERGES))
    if metadata.get("tokenizer.ggml.model") != "gpt2" or cut not in _CUTS or not tokens or not merges:
        return None
    types = metadata.get(TYPES)
    kinds = types if isinstance(types, tuple) and len(types) == len(tokens) else (1,) * len(tokens)
    expression, normalizer, whole_words = _CUTS[str(cut)]
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {
        "type": "BPE",
        "ignore_merges": whole_words,
        "vocab": {token: index for index, token in enumerate(tokens) if kinds[index] != _UNUSED},
        "merges": list(merges),
    }
    tokenizer = {
        "version": "1.0",
        "added_tokens": added_tokens(tokens, kinds, (CONTROL, USER_DEFINED), (CONTROL,)),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, by_bytes]},
        "decoder": by_bytes,
        "model": model,
    }
    return json.dumps(tokenizer, ensure_ascii=False)
