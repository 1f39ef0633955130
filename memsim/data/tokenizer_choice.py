"""Which tokenizer a run takes: what was asked for, else the model's own, and never bytes unless somebody said so."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from memsim.errors import InputError
from memsim.files import cache_dir, write_text
from memsim.weights.pack import BYTES, Pack
from memsim.weights.tokenizers.directory_tokenizer import read_tokenizer


@dataclass(frozen=True, slots=True)
class ChosenTokenizer:
    """The tokenizer of a run.

    Attributes:
        path: A ``tokenizer.json``; None takes bytes for tokens.
        name: What records and people call it.
        sha256: Of the file.
    """

    path: Path | None
    name: str
    sha256: str | None


def choose_tokenizer(asked: str | None, pack: Pack, model: str) -> ChosenTokenizer:
    """Return the tokenizer of a run.

    Args:
        asked: ``bytes``, a file, or None for the model's own.
        pack: The model.
        model: What messages call it.

    Raises:
        InputError: The model has none, or the file cannot serve.
    """
    if asked == BYTES or (asked is None and pack.tokenizer is None and pack.tokenizer_origin == BYTES):
        return ChosenTokenizer(None, BYTES, None)
    if asked is not None:
        return _of_file(Path(asked), pack.config.model_type)
    if pack.tokenizer is None:
        raise InputError(
            f"no tokenizer for {model}: {pack.tokenizer_origin}; give the model's own with "
            f"--tokenizer FILE (tokenizer.json or tokenizer.model), or train on bytes with --tokenizer bytes"
        )
    # A tokenizer.json that was put into a pack by hand is what the pack says it is not.
    name = "tokenizer.json" if pack.tokenizer_origin == BYTES else pack.tokenizer_origin
    return ChosenTokenizer(pack.tokenizer, name, _sha256(pack.tokenizer))


def _of_file(path: Path, model_type: str) -> ChosenTokenizer:
    """Return the tokenizer in a file: a ``tokenizer.json`` as it is, any other as one in the cache."""
    if path.suffix == ".json":
        return ChosenTokenizer(path, path.name, _sha256(path))
    found = read_tokenizer(path, model_type)
    if found.text is None:
        raise InputError(f"--tokenizer {path} cannot serve: {found.origin}")
    sha256 = hashlib.sha256(found.text.encode()).hexdigest()
    made = cache_dir() / f"tokenizer-{sha256[:16]}.json"
    if not made.is_file() or _sha256(made) != sha256:
        write_text(made, found.text)
    return ChosenTokenizer(made, path.name, sha256)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read tokenizer {path}: {error.strerror or error}") from error
