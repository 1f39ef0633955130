"""The ``tokenizer.json`` of a GGUF file, from its metadata.

llama.cpp has two kinds of tokenizers for the supported families: ``gpt2`` is byte-level BPE, which is made here, and
``llama`` SentencePiece (``gguf_sentencepiece``).
"""

from collections.abc import Mapping
from pathlib import Path

from memsim.json_file import shown
from memsim.weights.readers.gguf_file import Value, read_gguf_header
from memsim.weights.tokenizers.gguf_pre_tokenizers import CUTS
from memsim.weights.tokenizers.gguf_sentencepiece import gguf_sentencepiece
from memsim.weights.tokenizers.gguf_vocabulary import (
    CONTROL,
    MERGES,
    SCORES,
    TOKENS,
    TYPES,
    UNUSED,
    USER_DEFINED,
    begin_id,
    kinds_of,
    texts_of,
)
from memsim.weights.tokenizers.tokenizer_json import FoundTokenizer, added_token, beginning, byte_level


def gguf_tokenizer(path: Path) -> FoundTokenizer:
    """Return the tokenizer that a GGUF file describes, or what it has in the place of one.

    Raises:
        InputError: The file is malformed.
    """
    metadata = read_gguf_header(path, frozenset({TOKENS, MERGES, TYPES, SCORES})).metadata
    model, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model == "llama":
        return gguf_sentencepiece(metadata, path.name)
    if model != "gpt2":
        found = "no tokenizer" if model is None else f"a tokenizer of the kind {shown(model)}"
        return FoundTokenizer(None, f"{path.name} has {found} (memsim reads llama.cpp's 'gpt2' and 'llama')")
    if cut is not None and cut not in CUTS:
        known = ", ".join(name for name in CUTS if name)
        return FoundTokenizer(
            None, f"{path.name} cuts text in the way {shown(cut)} (tokenizer.ggml.pre); memsim knows {known}"
        )
    tokens, merges = texts_of(metadata.get(TOKENS)), texts_of(metadata.get(MERGES))
    if not tokens or not merges or len(set(tokens)) < len(tokens):
        return FoundTokenizer(None, f"{path.name} has {len(set(tokens))} tokens and {len(merges)} merges: not all")
    return FoundTokenizer(_byte_level(metadata, tokens, merges), f"the metadata of {path.name} (gpt2, {cut})")


def _byte_level(metadata: Mapping[str, Value], tokens: tuple[str, ...], merges: tuple[str, ...]) -> str:
    cut = CUTS[metadata.get("tokenizer.ggml.pre")]  # type: ignore[index]  # known to be one
    kinds = kinds_of(metadata, len(tokens)) or (1,) * len(tokens)
    begin = begin_id(metadata, len(tokens), cut.begins)
    return byte_level(
        {token: index for index, token in enumerate(tokens) if kinds[index] != UNUSED},
        merges,
        [
            added_token(index, token, kind == CONTROL)
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
        split=cut.split,
        normalizer=cut.normalizer,
        whole_words=cut.whole_words,
        post_processor=None if begin is None else beginning(tokens[begin], begin),
    )
