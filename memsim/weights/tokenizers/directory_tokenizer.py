"""The tokenizer of a Hugging Face directory, as the text of a ``tokenizer.json``, whatever files it comes in.

Where there is no tokenizer.json it is made of ``tokenizer.model``, or of ``vocab.json`` and ``merges.txt``, as
transformers makes it. ``tokenizer_config.json`` has the last word on the token that begins a text.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.json_file import parse_json, read_object, shown
from memsim.reading import open_regular
from memsim.weights.tokenizers.gguf_pre_tokenizers import QWEN2_SPLIT
from memsim.weights.tokenizers.gguf_vocabulary import CONTROL, UNKNOWN, USER_DEFINED
from memsim.weights.tokenizers.sentencepiece_file import read_sentencepiece
from memsim.weights.tokenizers.sentencepiece_json import merges_of, sentencepiece_json
from memsim.weights.tokenizers.tokenizer_json import FoundTokenizer, added_token, beginning, byte_level

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
MODEL_FILE, VOCABULARY_FILE, MERGES_FILE = "tokenizer.model", "vocab.json", "merges.txt"
TOKENIZER_FILES = (
    *(TOKENIZER_FILE, CONFIG_FILE, MODEL_FILE, VOCABULARY_FILE, MERGES_FILE),
    *("added_tokens.json", "special_tokens_map.json"),
)
"""Everything that decides the tokenizer of a directory."""

_MAX_BYTES = 128 << 20
_MAX_CONFIG_BYTES = 16 << 20
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# What the classes name where no file does.
_NAMED = {
    "GPT2Tokenizer": ("<|endoftext|>",),
    "Qwen2Tokenizer": ("<|endoftext|>",),
    "RobertaTokenizer": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}
_CLASSES = {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "roberta": "RobertaTokenizer"}


def directory_tokenizer(directory: Path, model_type: str) -> FoundTokenizer:
    """Return the tokenizer of a checkpoint, or what lies in its place.

    Args:
        directory: Of the checkpoint, untrusted.
        model_type: Decides the tokenizer's class where no file names it.

    Raises:
        InputError: Its ``tokenizer.json`` cannot be read.
    """
    settings = _object(directory / CONFIG_FILE)
    if (directory / TOKENIZER_FILE).is_file():
        return FoundTokenizer(_with_beginning(_text(directory / TOKENIZER_FILE), settings), TOKENIZER_FILE)
    try:
        return _made(directory, settings, model_type)
    except InputError as error:
        return FoundTokenizer(None, str(error))


def read_tokenizer(path: Path, model_type: str) -> FoundTokenizer:
    """Return the tokenizer in a ``tokenizer.model``, or what is wrong with it."""
    try:
        return _from_sentencepiece(path, _object(path.parent / CONFIG_FILE), model_type.startswith("gemma"))
    except InputError as error:
        return FoundTokenizer(None, str(error))


def _made(directory: Path, settings: Mapping[str, Any], model_type: str) -> FoundTokenizer:
    if (directory / MODEL_FILE).is_file():
        return _from_sentencepiece(directory / MODEL_FILE, settings, model_type.startswith("gemma"))
    if (directory / VOCABULARY_FILE).is_file() and (directory / MERGES_FILE).is_file():
        return _from_merges(directory, settings, model_type)
    return FoundTokenizer(
        None, f"{directory} has no {TOKENIZER_FILE}, no {MODEL_FILE}, and not both {VOCABULARY_FILE} and {MERGES_FILE}"
    )


def _from_sentencepiece(path: Path, settings: Mapping[str, Any], is_gemma: bool) -> FoundTokenizer:
    found = read_sentencepiece(path)
    if found.is_unigram:
        return FoundTokenizer(None, f"{path} is a unigram model of SentencePiece; memsim reads its BPE")
    merges = merges_of(found.pieces, range(len(found.pieces)), longer_first=False)
    if merges is None or len(set(found.pieces)) < len(found.pieces):
        return FoundTokenizer(None, f"{path} holds a piece twice, or pieces that no model has")
    before: list[dict[str, Any]] = []
    if found.charsmap:
        before.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(found.charsmap).decode()})
    if found.strips_spaces:
        before.append({"type": "Strip", "strip_left": True, "strip_right": True})
        before.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    begin = found.bos_id if settings.get("add_bos_token", True) is True else -1
    named = _content(settings.get("bos_token"))
    if begin >= 0 and named in found.pieces:
        begin = found.pieces.index(named)
    has_begin = 0 <= begin < len(found.pieces)
    text = sentencepiece_json(
        found.pieces,
        merges,
        [
            added_token(index, found.pieces[index], kind != USER_DEFINED)
            for index, kind in enumerate(found.kinds)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ],
        unknown=next((found.pieces[index] for index, kind in enumerate(found.kinds) if kind == UNKNOWN), None),
        space_first=found.space_first and not is_gemma,
        in_normalizer=is_gemma or bool(before),
        normalizers=before,
        post_processor=beginning(found.pieces[begin], begin) if has_begin else None,
    )
    return FoundTokenizer(text, MODEL_FILE)


def _from_merges(directory: Path, settings: Mapping[str, Any], model_type: str) -> FoundTokenizer:
    kind = str(settings.get("tokenizer_class") or _CLASSES.get(model_type, "GPT2Tokenizer")).removesuffix("Fast")
    if kind not in _NAMED:
        where = directory / CONFIG_FILE
        return FoundTokenizer(
            None, f"{where} names the class {shown(kind)}; of merges memsim reads {', '.join(_NAMED)}"
        )
    vocabulary = read_object(directory / VOCABULARY_FILE, _MAX_BYTES)
    if not vocabulary or not all(_is_id(index) for index in vocabulary.values()):
        return FoundTokenizer(None, f"{directory / VOCABULARY_FILE} is not an object of ids")
    lines = _text(directory / MERGES_FILE).split("\n")
    merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    added = _added(directory, settings, vocabulary, _NAMED[kind])
    vocabulary |= {token["content"]: token["id"] for token in added}
    begin = _content(settings.get("bos_token")) if settings.get("add_bos_token") is True else None
    around: dict[str, Any] | None = None
    if kind == "RobertaTokenizer" and "<s>" in vocabulary and "</s>" in vocabulary:
        ends = {"sep": ["</s>", vocabulary["</s>"]], "cls": ["<s>", vocabulary["<s>"]]}
        around = {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False}
    elif begin in vocabulary:
        around = beginning(str(begin), vocabulary[str(begin)])
    text = byte_level(
        vocabulary,
        merges,
        added,
        split=QWEN2_SPLIT if kind == "Qwen2Tokenizer" else None,
        normalizer="NFC" if kind == "Qwen2Tokenizer" else None,
        space_first=settings.get("add_prefix_space") is True,
        post_processor=around,
    )
    return FoundTokenizer(text, f"{VOCABULARY_FILE} and {MERGES_FILE} ({kind})")


def _added(
    directory: Path, settings: Mapping[str, Any], vocabulary: Mapping[str, int], named: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the tokens that are found in a text before it is cut, in the order of their ids."""
    found: dict[str, dict[str, Any]] = {}
    for content, index in _object(directory / "added_tokens.json").items():
        if _is_id(index):
            found[content] = added_token(index, content, special=True)
    given = settings.get("added_tokens_decoder")
    for index, token in (given if isinstance(given, dict) else {}).items():
        text = _content(token)
        if text and index.isdigit():
            flags = {
                key: token[key] is True for key in ("lstrip", "rstrip", "single_word", "normalized") if key in token
            }
            found[text] = added_token(int(index), text, token.get("special") is True) | flags
    roles = _object(directory / "special_tokens_map.json")
    for value in (*named, *(source.get(role) for source in (roles, settings) for role in _ROLES)):
        role = _content(value)
        if role is not None and role in vocabulary and role not in found:
            found[role] = added_token(vocabulary[role], role, special=True)
    return sorted(found.values(), key=lambda token: int(token["id"]))


def _with_beginning(text: str, settings: Mapping[str, Any]) -> str:
    """Return a tokenizer.json whose texts begin as ``tokenizer_config.json`` says, if it does."""
    asked = settings.get("add_bos_token")
    if not isinstance(asked, bool):
        return text
    tokenizer = parse_json(text, TOKENIZER_FILE)
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return text
    added = tokenizer.get("added_tokens")
    ids = dict(vocabulary)
    ids |= {token.get("content"): token.get("id") for token in (added if isinstance(added, list) else [])}
    begin = _content(settings.get("bos_token"))
    if not asked:
        tokenizer["post_processor"] = None
    elif begin and _is_id(ids.get(begin)):
        tokenizer["post_processor"] = beginning(begin, ids[begin])
    else:
        return text
    return json.dumps(tokenizer, ensure_ascii=False)


def _content(token: object) -> str | None:
    """Return the text of a token that a file gives as text or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _object(path: Path) -> dict[str, Any]:
    return read_object(path, _MAX_CONFIG_BYTES) if path.is_file() else {}


def _text(path: Path) -> str:
    """Return an untrusted text.

    Raises:
        InputError: It cannot be read, is absurdly large, or is not UTF-8.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise InputError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; no tokenizer is that large")
        return data.decode()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start} is wrong ({error.reason})") from error
