"""A Hugging Face directory, or an MLX one, as a source of weights: which file holds which tensor.

Everything in it is untrusted: names of shards stay inside the directory, every needed tensor must be there with the
type and shape that ``config.json`` implies, and reads are bounded by the checked headers.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from memsim.errors import InputError
from memsim.json_file import read_foreign, shown
from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict
from memsim.models.family import DECODER, Family
from memsim.models.parts import matrices, part_names, vectors
from memsim.weights.readers.mlx_tensor import MLX_PARTS, mlx_tensor
from memsim.weights.readers.plain_tensor import FLOAT_DTYPES, PlainTensor
from memsim.weights.readers.safetensors_index import INDEX_FILE, Found, Tensors, find_tensors
from memsim.weights.readers.source import Checkpoint, SourceTensor, eos_in
from memsim.weights.readers.tensor_names import by_our_names, refuse_unread
from memsim.weights.tokenizers.directory_tokenizer import directory_tokenizer

CONFIG_FILE = "config.json"

MAX_CONFIG_BYTES = 4 << 20


def is_checkpoint(directory: Path) -> bool:
    """Return whether ``directory`` looks like a Hugging Face model."""
    return (directory / CONFIG_FILE).is_file()


def open_checkpoint(directory: Path) -> Checkpoint:
    """Check a Hugging Face directory without reading any tensor.

    Raises:
        InputError: A file is missing or malformed, a tensor is missing, or has the wrong shape or type.
    """
    where = directory / CONFIG_FILE
    data = read_foreign(where, MAX_CONFIG_BYTES)
    config = config_from_dict(data, str(where))
    files = find_tensors(directory)
    found, config = by_our_names(files.found, config, directory)
    _refuse_more_layers(found, config, directory)
    unread = set(found)
    tensors: dict[tuple[str, str], SourceTensor] = {}
    for part, name, shape in wanted_tensors(config, len(found) + len(files.missing), CONFIG_FILE):
        theirs = hugging_face_name(part, name, config.family)
        tensors[part, name] = _checked(theirs, name, shape, config, found, files, directory)
        unread -= {theirs, *(f"{theirs.removesuffix('.weight')}.{other}" for other in MLX_PARTS)}
    refuse_unread(unread, config, directory)
    eos = data.get("eos_token_id")
    eos_id = eos_in(eos[0] if isinstance(eos, list) and eos else eos, config)
    return Checkpoint(directory, config, eos_id, tensors, partial(directory_tokenizer, directory, config.model_type))


def hugging_face_name(part: str, name: str, family: Family = DECODER) -> str:
    """Return Hugging Face's name for tensor ``name`` (with ``.weight`` or ``.bias``) of ``part``."""
    module, _, kind = name.rpartition(".")
    name = f"{family.names.get(module, module)}.{kind}"
    if part.startswith("block_"):
        return family.blocks.format(int(part.removeprefix("block_"))) + name
    return name if name.startswith(("lm_head.", "classifier.")) else family.prefix + name


def wanted_tensors(config: ModelConfig, n_found: int, where: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield (part, name, shape) of every tensor of a model.

    Args:
        config: Untrusted dimensions.
        n_found: How many tensors the files hold.
        where: What the error message calls the origin of ``config``.

    Raises:
        InputError: More layers than tensors.
    """
    # A hostile layer count must not make a list of billions of parts.
    if config.num_hidden_layers > n_found:
        raise InputError(f"{where} names {config.num_hidden_layers} layers, but the files hold {n_found} tensors")
    for part in part_names(config):
        for name, shape in matrices(config, part).items():
            yield part, f"{name}.weight", shape
        for name, tensor_shape in vectors(config, part).items():
            yield part, name, tensor_shape


def _refuse_more_layers(found: Found, config: ModelConfig, directory: Path) -> None:
    """Refuse tensors of layers that the configuration does not have: it is of another model.

    Raises:
        InputError: There is one.
    """
    begin, end = (re.escape(text) for text in config.family.blocks.split("{}"))
    layer = re.compile(f"{begin}([0-9]{{1,9}}){end}")
    for name in found:
        match = layer.match(name)
        if match and int(match[1]) >= config.num_hidden_layers:
            raise InputError(
                f"{directory} holds the tensor {shown(name)}, but {CONFIG_FILE} names "
                f"{config.num_hidden_layers} layers (num_hidden_layers); it belongs to another model"
            )


def _checked(
    name: str,
    our_name: str,
    shape: tuple[int, ...],
    config: ModelConfig,
    found: Found,
    files: Tensors,
    directory: Path,
) -> SourceTensor:
    if name not in found:
        if shard := files.missing.get(name):
            if not (directory / shard).exists():
                raise InputError(f"cannot read {directory / shard}: No such file or directory")
            raise InputError(f"{directory / shard} has no tensor {name!r}, which {INDEX_FILE} says it holds")
        raise InputError(f"{directory} has no tensor {name!r}; is it a whole checkpoint of this architecture?")
    path, entry = found[name]
    if entry.dtype == "u32" and len(shape) == 2:
        return mlx_tensor(name, (shape[0], shape[1]), found, directory)
    if entry.shape != shape:
        raise InputError(f"{path}: {name!r} has shape {list(entry.shape)}, but {CONFIG_FILE} implies {list(shape)}")
    if entry.dtype not in FLOAT_DTYPES:
        raise InputError(f"{path}: {name!r} is {entry.dtype}; memsim packs {', '.join(FLOAT_DTYPES)} and MLX's u32")
    # A pack holds what a norm multiplies with.
    offset = config.family.norm_offset if our_name.endswith("norm.weight") else 0.0
    return PlainTensor(name, path, entry, offset)
