"""A Hugging Face directory as a source of weights: which file holds which tensor, read by rows.

Everything in it is untrusted: names of shards stay inside the directory, every needed tensor must be there with the
type and shape that ``config.json`` implies, and reads are bounded by the checked headers.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.json_file import read_object, shown
from memsim.models.config import ModelConfig, config_from_dict
from memsim.models.family import DECODER, Family
from memsim.models.parts import matrices, part_names, vectors
from memsim.weights.tensor_file import TensorEntry, read_header

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

_WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_MAX_CONFIG_BYTES = 4 << 20
_MAX_INDEX_BYTES = 64 << 20
# How multimodal files begin the names of the text model, since transformers 4.52 and before.
_MULTIMODAL = re.compile(r"^(model\.)?language_model\.")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_SOURCE_DTYPES = {"bf16": "<u2", "f16": "<f2", "f32": "<f4"}


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a checkpoint, checked to have the expected shape and a type that we read.

    Attributes:
        name: Hugging Face's name.
        path: The file that holds it.
        entry: Its place there.
        offset: What is added to its values in a pack.
    """

    name: str
    path: Path
    entry: TensorEntry
    offset: float = 0.0

    @property
    def rows(self) -> tuple[int, int]:
        """Its shape as a matrix; a vector is one row."""
        shape = self.entry.shape
        return (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked Hugging Face directory.

    Attributes:
        directory: Where it is.
        config: The model's dimensions.
        eos_token_id: End-of-text token of ``config.json``, if it has one inside the vocabulary.
        tensors: (part, our tensor name) -> source.
    """

    directory: Path
    config: ModelConfig
    eos_token_id: int | None
    tensors: Mapping[tuple[str, str], SourceTensor]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors that a pack needs."""
        return sum(tensor.entry.n_bytes for tensor in self.tensors.values())


def is_checkpoint(directory: Path) -> bool:
    """Return whether ``directory`` looks like a Hugging Face model."""
    return (directory / CONFIG_FILE).is_file()


def open_checkpoint(directory: Path) -> Checkpoint:
    """Check a Hugging Face directory without reading any tensor.

    Raises:
        InputError: A file is missing or malformed, a tensor is missing, or has the wrong shape or type.
    """
    where = directory / CONFIG_FILE
    data = read_object(where, _MAX_CONFIG_BYTES)
    config = config_from_dict(data, str(where))
    found = {_MULTIMODAL.sub(r"\1", name): place for name, place in _find_tensors(directory).items()}
    tensors = {}
    for part, name, shape in _wanted(config, found):
        tensor = _checked(hugging_face_name(part, name, config.family), shape, found, directory)
        offset = config.family.norm_offset if name.endswith("norm.weight") else 0.0
        tensors[part, name] = replace(tensor, offset=offset)
    return Checkpoint(directory, config, _eos_token_id(data, config), tensors)


def hugging_face_name(part: str, name: str, family: Family = DECODER) -> str:
    """Return Hugging Face's name for tensor ``name`` (with ``.weight`` or ``.bias``) of ``part``."""
    module, _, kind = name.rpartition(".")
    name = f"{family.names.get(module, module)}.{kind}"
    if part.startswith("block_"):
        return family.blocks.format(int(part.removeprefix("block_"))) + name
    return name if name.startswith("lm_head.") else family.prefix + name


def _wanted(config: ModelConfig, found: Mapping[str, object]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield (part, name, shape) of every tensor of the model."""
    # A hostile layer count must not make a list of billions of parts.
    if config.num_hidden_layers > len(found):
        raise InputError(
            f"{CONFIG_FILE} names {config.num_hidden_layers} layers, but the files hold {len(found)} tensors"
        )
    for part in part_names(config):
        for name, shape in matrices(config, part).items():
            yield part, f"{name}.weight", shape
        for name, tensor_shape in vectors(config, part).items():
            yield part, name, tensor_shape


def _checked(
    name: str, shape: tuple[int, ...], found: Mapping[str, tuple[Path, TensorEntry]], directory: Path
) -> SourceTensor:
    if name not in found:
        raise InputError(f"{directory} has no tensor {name!r}; is it a whole checkpoint of this architecture?")
    path, entry = found[name]
    if entry.shape != shape:
        raise InputError(f"{path}: {name!r} has shape {list(entry.shape)}, but {CONFIG_FILE} implies {list(shape)}")
    if entry.dtype not in _SOURCE_DTYPES:
        raise InputError(f"{path}: {name!r} is {entry.dtype}; memsim packs {', '.join(_SOURCE_DTYPES)}")
    return SourceTensor(name, path, entry)


def _find_tensors(directory: Path) -> dict[str, tuple[Path, TensorEntry]]:
    """Return every tensor of the directory as name -> (file, place)."""
    single, index = directory / _WEIGHTS_FILE, directory / _INDEX_FILE
    if single.exists():
        return {name: (single, entry) for name, entry in read_header(single).items()}
    if not index.exists():
        raise InputError(
            f"{directory} has neither {_WEIGHTS_FILE} nor {_INDEX_FILE}; "
            f"save the model with save_pretrained(..., safe_serialization=True)"
        )
    found = {}
    headers: dict[str, dict[str, TensorEntry]] = {}
    for name, shard in _weight_map(index).items():
        if shard not in headers:
            headers[shard] = read_header(directory / shard)
        if name not in headers[shard]:
            raise InputError(f"{directory / shard} has no tensor {shown(name)}, which {_INDEX_FILE} says it holds")
        found[name] = (directory / shard, headers[shard][name])
    return found


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index}: 'weight_map' must be an object")
    for name, shard in weight_map.items():
        # A plain file name only: no directory, no "..", no absolute path.
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise InputError(f"{index}: {shown(shard)}, the shard of {shown(name)}, is not a safetensors file name")
    return weight_map


def _eos_token_id(data: Mapping[str, Any], config: ModelConfig) -> int | None:
    value = data.get("eos_token_id")
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < config.vocab_size:
        return value
    return None


class RowReader:
    """Reads one tensor's rows as float32, in any order, dropping the pages of the file that it has read."""

    def __init__(self, tensor: SourceTensor, descriptor: int) -> None:
        """Read ``tensor`` from the open file ``descriptor``."""
        self._tensor = tensor
        self._descriptor = descriptor
        self._dtype = np.dtype(_SOURCE_DTYPES[tensor.entry.dtype])

    def read(self, first: int, count: int) -> NDArray[np.float32]:
        """Return rows ``first`` ... ``first + count - 1`` as float32 [count, K].

        Raises:
            InputError: The file ends too early or cannot be read.
        """
        columns = self._tensor.rows[1]
        stored = np.empty((count, columns), self._dtype)
        offset = self._tensor.entry.start + first * columns * self._dtype.itemsize
        self._fill(stored.reshape(-1).view(np.uint8).data, offset)
        os.posix_fadvise(self._descriptor, offset, stored.nbytes, os.POSIX_FADV_DONTNEED)
        if self._tensor.entry.dtype == "bf16":
            return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return stored.astype(np.float32, copy=False)

    def _fill(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            n_bytes = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            if n_bytes == 0:
                raise InputError(f"{self._tensor.path} ends inside {self._tensor.name!r}; it was truncated meanwhile")
            done += n_bytes


@contextmanager
def row_reader(tensor: SourceTensor) -> Iterator[RowReader]:
    """Open the file of ``tensor`` for reading by rows.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with tensor.path.open("rb", buffering=0) as file:
            yield RowReader(tensor, file.fileno())
    except OSError as error:
        raise InputError(f"cannot read {tensor.path}: {error.strerror or error}") from error
