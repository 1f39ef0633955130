"""The names that people's files give to tensors, and what a file says by holding a tensor or not.

Files of one model differ: whole models put a prefix before every name and embedding models none; multimodal ones have
two prefixes, by the version of transformers; a tied head is stored under either name, under both, or is no tied head at
all. A tensor that nobody reads is refused, unless it is known to change nothing.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.models.config import ModelConfig
from memsim.weights.readers.safetensors_index import Found
from memsim.weights.readers.source import opened

_CHUNK_BYTES = 1 << 20
_LEGACY = re.compile(r"^(model\.)?language_model\.")
# What changes no result: what fills our own files up, tables that transformers computes itself, the pooler that no head
# of ours reads, and the other half of a multimodal model.
_WITHOUT_EFFECT = re.compile(
    r"_pad\d+|(.*\.)?rotary_emb(_local)?\.inv_freq|(.*\.)?embeddings\.(position_ids|token_type_ids)|"
    r"(.*\.)?pooler\.dense\.\w+"
)
_OTHER_HALF = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..*")
# Second names of RoBERTa's head.
_ALIASES = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
_HEAD = "lm_head."


def by_our_names(found: Found, config: ModelConfig, directory: Path) -> tuple[Found, ModelConfig]:
    """Return the tensors by the names of the class that the model loads as, and whether its head is really tied.

    Args:
        found: Name in the files -> place.
        config: As ``config.json`` says.
        directory: What error messages call the checkpoint.

    Raises:
        InputError: Two tensors with one meaning, or two names of one tensor with different values.
    """
    renamed: Found = {}
    for name, place in found.items():
        new = _renamed(name, config)
        if new in renamed:
            raise InputError(f"{directory} holds {shown(new)} twice, under two names")
        renamed[new] = place
    renamed = _with_prefix(renamed, config)
    for alias, name in _ALIASES.items():
        if alias in renamed and name in renamed:
            if not _same(renamed, alias, name):
                raise InputError(f"{directory}: {alias} is not {name}, with which {config.model_type} ties it")
            del renamed[alias]
    return _with_head(renamed, config)


def refuse_unread(names: Iterable[str], config: ModelConfig, directory: Path) -> None:
    """Refuse tensors that are not read, unless they change nothing.

    Raises:
        InputError: There is one that might.
    """
    for name in sorted(names):
        other_half = config.multimodal_type is not None and _OTHER_HALF.fullmatch(name)
        if not other_half and not _WITHOUT_EFFECT.fullmatch(name):
            raise InputError(
                f"{directory} holds the tensor {shown(name)}, which a {config.model_type} as its config.json describes "
                f"it does not have; memsim does not drop it unseen"
            )


def _renamed(name: str, config: ModelConfig) -> str:
    """Return a tensor's name without what is said twice around a language model."""
    if config.multimodal_type is None:
        return _LEGACY.sub(r"\1", name)
    for old, new in (("language_model.model.", "model.language_model."), ("language_model.lm_head.", _HEAD)):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _with_prefix(found: Found, config: ModelConfig) -> Found:
    """Return the tensors of an embedding model by the names that they have in a whole one."""
    base = config.family.prefix.partition(".")[0] + "."
    outside = (_HEAD, "classifier.", "score.")
    if any(name.startswith(base) for name in found):
        return found
    return {name if name.startswith(outside) else base + name: place for name, place in found.items()}


def _with_head(found: Found, config: ModelConfig) -> tuple[Found, ModelConfig]:
    """Return the tensors without a second name of the embedding, and the configuration with the head as it is."""
    if not config.tie_word_embeddings or config.family.transformed_head:
        return found, config
    own = f"{config.family.prefix}embed_tokens."
    heads = [name for name in found if name.startswith(_HEAD)]
    if not heads:
        return found, config
    twins = {name: own + name.removeprefix(_HEAD) for name in heads}
    if not any(name.startswith(own) for name in found):
        return {twins.get(name, name): place for name, place in found.items()}, config
    if all(twin in found and _same(found, name, twin) for name, twin in twins.items()):
        return {name: place for name, place in found.items() if name not in twins}, config
    return found, replace(config, tie_word_embeddings=False)  # as transformers does: it keeps both


def _same(found: Found, first: str, second: str) -> bool:
    """Return whether two tensors hold the same bytes."""
    (_, one), (_, other) = found[first], found[second]
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(_chunks(found, first), _chunks(found, second), strict=True))


def _chunks(found: Found, name: str) -> Iterator[bytes]:
    path, entry = found[name]
    with opened(path) as descriptor:
        for start in range(0, entry.n_bytes, _CHUNK_BYTES):
            yield os.pread(descriptor, min(_CHUNK_BYTES, entry.n_bytes - start), entry.start + start)
