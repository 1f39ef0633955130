"""Which format a checkpoint has, and the one way to open any of them."""

from pathlib import Path

from memsim.weights.readers.gguf_files import gguf_parts, is_gguf
from memsim.weights.readers.gguf_model import open_gguf
from memsim.weights.readers.hugging_face import CONFIG_FILE, is_checkpoint, open_checkpoint
from memsim.weights.readers.source import Checkpoint
from memsim.weights.tokenizers.directory_tokenizer import TOKENIZER_FILES


def is_source(path: Path) -> bool:
    """Return whether ``path`` looks like a checkpoint: a Hugging Face or MLX directory, or a GGUF file."""
    return is_checkpoint(path) or is_gguf(path)


def open_source(path: Path) -> Checkpoint:
    """Check a checkpoint without reading any weight.

    Raises:
        InputError: A file is missing or malformed, a tensor is missing, or has the wrong shape or type.
    """
    return open_gguf(path) if is_gguf(path) else open_checkpoint(path)


def source_files(path: Path) -> list[Path]:
    """Return the files of a checkpoint whose change means other weights, configuration or tokenizer.

    Raises:
        InputError: The parts of a GGUF file have an impossible name.
        OSError: It cannot be listed.
    """
    if is_gguf(path):
        beside = (path.parent / name for name in TOKENIZER_FILES)
        return [*gguf_parts(path), *(file for file in beside if file.is_file())]
    names = {CONFIG_FILE, *TOKENIZER_FILES}
    return [file for file in path.iterdir() if file.name in names or ".safetensors" in file.suffixes]
