"""Models by their name on the Hugging Face hub, fetched by huggingface_hub into its own cache."""

import re
from collections.abc import Callable
from pathlib import Path

from memsim.errors import InputError
from memsim.weights.tokenizers.directory_tokenizer import TOKENIZER_FILES

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"({_NAME}/{_NAME})(?:/([A-Za-z0-9][A-Za-z0-9._/-]*\.gguf))?")
# Not every *.safetensors: some repositories hold a second copy of the weights under another name.
_CONFIG = "config.json"
_PATTERNS = (_CONFIG, "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


def is_hub_id(name: str) -> bool:
    """Return whether ``name`` could be a model on the hub: ``owner/model``, or ``owner/model/file.gguf``."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name


def fetch_config(name: str) -> Path:
    """Return the local ``config.json`` of a model on the hub, fetched alone; of ``owner/model/file.gguf``, that file.

    Raises:
        InputError: As ``fetch``.
    """
    matched = _HUB_ID.fullmatch(name)
    whole = matched is not None and matched[2] is not None
    return fetch(name, lambda *_: None) if whole else _snapshot(name, (_CONFIG,)) / _CONFIG


def fetch(name: str, progress: Callable[[str, int, int], None]) -> Path:
    """Return the local files of a model on the hub, fetched unless huggingface_hub has them.

    Args:
        name: What ``is_hub_id`` accepts.
        progress: Called once, with a label and zeros; huggingface_hub draws bars of its own on a terminal.

    Raises:
        InputError: The package is missing, the hub cannot be reached, or has no such model.
    """
    matched = _HUB_ID.fullmatch(name)
    file = matched[2] if matched else None
    progress(f"fetching {name} from the Hugging Face hub", 0, 0)
    directory = _snapshot(name, (*([file] if file else _PATTERNS), *TOKENIZER_FILES))
    return directory / file if file else directory


def _snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    """Return the directory of a repository's files that ``patterns`` name.

    Raises:
        InputError: As ``fetch``.
    """
    matched = _HUB_ID.fullmatch(name)
    if matched is None:
        raise InputError(f"{name!r} is not the name of a model on the Hugging Face hub")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{name!r} is no preset or path here; to fetch it from the Hugging Face hub run `pip install 'memsim[hub]'`"
        ) from None
    try:
        return Path(snapshot_download(matched[1], allow_patterns=list(patterns)))
    except Exception as error:  # dozens of kinds, of the library and of the HTTP client beneath it
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:160]
        raise InputError(
            f"cannot fetch {name!r} from the Hugging Face hub, and neither its cache nor this directory holds it "
            f"({type(error).__name__}: {reason}); check the name and the connection, or give a local path"
        ) from error
