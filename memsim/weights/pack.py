"""A pack: a directory with ``pack.json``, one safetensors file per part, and perhaps a tokenizer.

Over 250 lines: what a pack may hold is checked where it is opened.

``memsim.models.parts`` says what each file holds. A pack may come from anywhere, so everything in it is checked
before use: descriptions and headers when it is opened (no tensor is read), tensor data by its SHA-256 once mapped.
"""

import hashlib
import json
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memsim.errors import InputError, UsageError
from memsim.ir.matrix_format import MatrixFormat, symmetric
from memsim.json_file import read_object, shown
from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict
from memsim.models.matrix_formats import Formats, Packing, formats_from, formats_of
from memsim.models.parts import GROUP_SIZES, matrices, part_names, part_tensors
from memsim.weights.tensor_file import PAD_PREFIX, TENSOR_ALIGNMENT, TensorEntry, read_header

SCHEMA = "memsim.pack/1"
MIXED_SCHEMA = "memsim.pack/2"
"""Of packs in which not every matrix is symmetric INT4 in groups of one size: ``formats`` names each."""
PACK_FILE = "pack.json"
TOKENIZER_FILE = "tokenizer.json"
BYTES = "bytes"
"""What a pack calls the tokenizer of a model whose ids are bytes."""
SOURCES = ("synthetic", "packed")

_MAX_JSON_BYTES = 4 << 20
_MAX_PART_HEADER_BYTES = 1 << 20
_MAX_ORIGIN = 1 << 12  # characters
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PartFile:
    """One file of a pack.

    Attributes:
        path: The safetensors file.
        n_bytes: Its size.
        sha256: What its bytes must hash to.
        tensors: Name -> place in the file, without pads.
    """

    path: Path
    n_bytes: int
    sha256: str
    tensors: Mapping[str, TensorEntry]


@dataclass(frozen=True, slots=True)
class Pack:
    """An opened pack whose descriptions and headers have been checked.

    Attributes:
        directory: Where it is.
        config: The model's dimensions.
        formats: Of its matrices.
        source: ``synthetic`` or ``packed`` (from a real checkpoint).
        seed: Of synthetic weights.
        model_hash: SHA-256 over the configuration, the formats and the checksums of all parts.
        eos_token_id: End-of-text token, when the checkpoint named one.
        parts: Part name -> file, in forward order.
        tokenizer: Its ``tokenizer.json``, when it has one.
        tokenizer_origin: What that was made of, ``bytes`` for a model of bytes, or what was found in its place.
    """

    directory: Path
    config: ModelConfig
    formats: Formats
    source: str
    seed: int | None
    model_hash: str
    eos_token_id: int | None
    parts: Mapping[str, PartFile]
    tokenizer: Path | None
    tokenizer_origin: str

    @property
    def n_bytes(self) -> int:
        """Size of all parts together."""
        return sum(part.n_bytes for part in self.parts.values())

    @property
    def group_size(self) -> int:
        """Columns that share a scale in most matrices."""
        return self.formats.usual.group_size

    def part(self, name: str) -> PartFile:
        """Return the file of part ``name`` (``embed``, ``block_000``, ..., ``head``)."""
        return self.parts[name]


def part_file_name(part: str) -> str:
    """Return the file name of ``part``."""
    return f"{part}.safetensors"


def describe_formats(config: ModelConfig, packing: Packing) -> dict[str, Any]:
    """Return what ``pack.json`` says of formats: the group size where all is symmetric INT4, else every matrix's."""
    formats = formats_of(packing)
    if not formats.others and formats.usual.name == "symmetric":
        return {"schema": SCHEMA, "group_size": formats.usual.group_size}
    named = {
        part: {
            name: {"name": (own := formats.of(part, name)).name, "group_size": own.group_size}
            for name in matrices(config, part)
        }
        for part in part_names(config)
    }
    return {"schema": MIXED_SCHEMA, "formats": named}


def model_hash(config: ModelConfig, packing: Packing, checksums: Mapping[str, str]) -> str:
    """Return the SHA-256 that names a model: configuration, formats and part name -> checksum."""
    described = describe_formats(config, packing)
    del described["schema"]
    identity = {"config": config.to_dict(), "parts": dict(checksums)} | described
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_pack(directory: Path) -> bool:
    """Return whether ``directory`` looks like a pack."""
    return (directory / PACK_FILE).is_file()


def open_pack(directory: Path) -> Pack:
    """Open a pack, untrusted, without reading any tensor.

    Raises:
        InputError: Something is missing, malformed, of the wrong size, or not what the configuration demands.
    """
    where = directory / PACK_FILE
    data = read_object(where, _MAX_JSON_BYTES)
    if data.get("schema") not in (SCHEMA, MIXED_SCHEMA):
        raise InputError(
            f"{where}: schema {shown(data.get('schema'))} is not {SCHEMA!r} or {MIXED_SCHEMA!r}; "
            f"pack the checkpoint again"
        )
    config = _config(data, where)
    described = data.get("parts")
    # Before any name is built: a hostile layer count must not make a list of billions.
    if not isinstance(described, dict) or len(described) != config.num_hidden_layers + 2:
        raise InputError(f"{where}: 'parts' must describe embed, {config.num_hidden_layers} blocks and head")
    formats = _formats(data, config, where)
    parts = {name: _part(directory, config, name, formats, described, where) for name in part_names(config)}
    found_hash = model_hash(config, formats, {name: part.sha256 for name, part in parts.items()})
    if data.get("model_hash") != found_hash:
        raise InputError(f"{where}: model_hash does not belong to its config and parts; the file was edited")
    tokenizer = directory / TOKENIZER_FILE
    return Pack(
        directory=directory,
        config=config,
        formats=formats,
        source=_choice(data, "source", SOURCES, where),
        seed=_integer_or_none(data, "seed", where, 1 << 64),
        model_hash=found_hash,
        eos_token_id=_integer_or_none(data, "eos_token_id", where, config.vocab_size),
        parts=parts,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        tokenizer_origin=_tokenizer_origin(data, where),
    )


def verify_part(pack: Pack, name: str, mapped: bytes | memoryview | mmap.mmap) -> None:
    """Check the bytes of part ``name``, usually a map of its file, against their checksum.

    Raises:
        InputError: They differ.
    """
    part = pack.part(name)
    if hashlib.sha256(mapped).hexdigest() != part.sha256:
        raise InputError(
            f"{part.path} does not match its checksum: it changed since it was packed; "
            f"delete {pack.directory} and pack again"
        )


def _tokenizer_origin(data: Mapping[str, Any], where: Path) -> str:
    """Return what a pack says of its tokenizer; packs of before say nothing."""
    unsaid = BYTES if data.get("source") == "synthetic" else f"{where.parent} has no {TOKENIZER_FILE}"
    origin = data.get("tokenizer", unsaid)
    if not isinstance(origin, str) or len(origin) > _MAX_ORIGIN or not origin.isprintable():
        raise InputError(f"{where}: 'tokenizer' must be a short text, not {shown(origin)}")
    return origin


def _config(data: Mapping[str, Any], where: Path) -> ModelConfig:
    config = data.get("config")
    if not isinstance(config, dict):
        raise InputError(f"{where}: 'config' must be an object")
    return config_from_dict(config, str(where), foreign=False)


def _formats(data: Mapping[str, Any], config: ModelConfig, where: Path) -> Formats:
    if data.get("schema") == SCHEMA:
        return Formats(symmetric(_choice(data, "group_size", GROUP_SIZES, where)))
    named, chosen = data.get("formats"), dict[tuple[str, str], MatrixFormat]()
    for part in part_names(config):
        of_part = named.get(part) if isinstance(named, dict) else None
        wanted = matrices(config, part)
        if not isinstance(of_part, dict) or set(of_part) != set(wanted):
            raise InputError(f"{where}: 'formats' must have {part!r} with exactly {', '.join(wanted) or 'no matrix'}")
        for name in wanted:
            chosen[part, name] = _format(of_part[name], f"{where}: the format of {part}/{name}")
    return formats_from(chosen)


def _format(described: Any, where: str) -> MatrixFormat:
    name, group_size = (described.get(key) if isinstance(described, dict) else None for key in ("name", "group_size"))
    if not isinstance(name, str) or isinstance(group_size, bool) or not isinstance(group_size, int):
        raise InputError(f"{where} must be an object with name and group_size, not {shown(described)}")
    try:
        return MatrixFormat(name, group_size)
    except UsageError as error:
        raise InputError(f"{where}: {error}") from error


def _choice(data: Mapping[str, Any], key: str, choices: tuple[Any, ...], where: Path) -> Any:
    value = data.get(key)
    if isinstance(value, bool) or value not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise InputError(f"{where}: {key!r} must be {allowed}, not {shown(value)}")
    return value


def _integer_or_none(data: Mapping[str, Any], key: str, where: Path, end: int) -> int | None:
    value = data.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end):
        raise InputError(f"{where}: {key!r} must be null or an integer below {end}, not {shown(value)}")
    return value


def _part(
    directory: Path, config: ModelConfig, name: str, formats: Formats, described: Mapping[str, Any], where: Path
) -> PartFile:
    """Check one part: its description, its size on disk, and its header against the configuration."""
    description = described.get(name)
    if not isinstance(description, dict) or description.get("file") != part_file_name(name):
        raise InputError(f"{where}: part {name!r} must be described, with file {part_file_name(name)!r}")
    sha256, n_bytes = description.get("sha256"), description.get("n_bytes")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise InputError(f"{where}: part {name!r} has no valid sha256")
    path = directory / part_file_name(name)
    tensors = read_header(path, _MAX_PART_HEADER_BYTES)
    size = max((entry.end for entry in tensors.values()), default=0)
    if isinstance(n_bytes, bool) or n_bytes != size:
        raise InputError(f"{path} has {size} bytes, but {where} says {shown(n_bytes)}; it is truncated or corrupt")
    return PartFile(path, size, sha256, _expected_tensors(tensors, config, name, formats, path))


def _expected_tensors(
    found: Mapping[str, TensorEntry], config: ModelConfig, part: str, formats: Formats, path: Path
) -> dict[str, TensorEntry]:
    """Return the tensors of ``part`` without pads, once they are exactly those that the configuration demands."""
    specs = part_tensors(config, part, formats)
    tensors = {}
    for name, spec in specs.items():
        entry = found.get(name)
        if entry is None:
            raise InputError(f"{path} has no tensor {name!r}")
        if (entry.dtype, entry.shape) != (spec.dtype, spec.shape):
            needed = f"{spec.dtype} {list(spec.shape)}"
            raise InputError(f"{path}: {name!r} is {entry.dtype} {list(entry.shape)}, but the model needs {needed}")
        if entry.start % TENSOR_ALIGNMENT:
            raise InputError(f"{path}: {name!r} starts at byte {entry.start}, not a multiple of {TENSOR_ALIGNMENT}")
        tensors[name] = entry
    extra = [name for name in found if name not in specs and not name.startswith(PAD_PREFIX)]
    if extra:
        raise InputError(f"{path} holds the unknown tensor {shown(extra[0])}")
    return tensors
