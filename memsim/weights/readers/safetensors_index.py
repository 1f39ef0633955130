"""Which safetensors file of a directory holds which tensor."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memsim.errors import InputError
from memsim.json_file import read_object, shown
from memsim.weights.tensor_file import TensorEntry, read_header

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_MAX_INDEX_BYTES = 64 << 20
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")

Found = dict[str, tuple[Path, TensorEntry]]


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of a directory.

    Attributes:
        found: Name -> (file, place in it).
        missing: Name -> the file that should hold it by the index, but is not there or does not. An index may be older
            than its files, so that is a fault only of a tensor that is needed.
    """

    found: Found
    missing: Mapping[str, str]


def has_weights(directory: Path) -> bool:
    """Return whether there are safetensors files by the names that transformers reads."""
    return any((directory / name).exists() for name in (WEIGHTS_FILE, INDEX_FILE))


def find_tensors(directory: Path) -> Tensors:
    """Find every tensor of a directory.

    Raises:
        InputError: There are no weights, or a header or the index is malformed.
    """
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.exists():
        return Tensors({name: (single, entry) for name, entry in read_header(single).items()}, {})
    if not index.exists():
        raise InputError(
            f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}; "
            f"save the model with save_pretrained(..., safe_serialization=True)"
        )
    weight_map = _weight_map(index)
    there = [shard for shard in dict.fromkeys(weight_map.values()) if (directory / shard).exists()]
    found: Found = {}
    for shard in there:
        for name, entry in read_header(directory / shard).items():
            if weight_map.get(name, shard) == shard or name not in found:
                found[name] = (directory / shard, entry)
    if not found and weight_map:
        raise InputError(f"cannot read {directory / next(iter(weight_map.values()))}: No such file or directory")
    missing = {name: shard for name, shard in weight_map.items() if name not in found}
    return Tensors(found, missing)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index}: 'weight_map' must be an object")
    for name, shard in weight_map.items():
        # A plain file name only: no directory, no "..", no absolute path.
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise InputError(f"{index}: {shown(shard)}, the shard of {shown(name)}, is not a safetensors file name")
    return weight_map
