"""The files of one GGUF model: one, or those that llama.cpp's ``gguf-split`` made of it.

Each part is a GGUF file with some of the tensors; the first has the model's metadata. Source: llama.cpp's
``llama_split_path`` (``NAME-00001-of-00003.gguf``) and the keys ``split.no``, ``split.count``, ``split.tensors.count``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.reading import open_regular
from memsim.weights.readers.gguf_file import GgufEntry, GgufHeader, Value, read_gguf_header

_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")
_MAX_PARTS = 1000
_MAGIC = b"GGUF"
_SUFFIX = ".gguf"


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """A whole model.

    Attributes:
        paths: Its files; the first has the metadata.
        metadata: Of the first.
        tensors: Of all.
        places: Tensor name -> its file.
    """

    paths: tuple[Path, ...]
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufEntry]
    places: Mapping[str, Path]


def is_gguf(path: Path) -> bool:
    """Return whether ``path`` is a GGUF file: by its first bytes, or, to say what is wrong with it, by its name."""
    if not path.is_file():
        return False
    if path.suffix.lower() == _SUFFIX:
        return True
    try:
        with open_regular(path) as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """Return the files of the model of which ``path`` is one.

    Raises:
        InputError: The name says that there are more parts than anybody makes.
    """
    matched = _PART.fullmatch(path.name)
    if matched is None:
        return (path,)
    stem, count = matched[1], int(matched[3])
    if not 0 < int(matched[2]) <= count <= _MAX_PARTS:
        raise InputError(f"{path} is no part of 1 to {_MAX_PARTS}")
    return tuple(path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1))


def read_gguf_files(path: Path) -> GgufFiles:
    """Read and check the headers of a model of which ``path`` is a file.

    Raises:
        InputError: A part is missing, malformed, or of another model.
    """
    paths = gguf_parts(path)
    for part in paths:
        if not part.is_file():
            raise InputError(f"{part} is not here; {path.name} is one of {len(paths)} files of a model")
    headers = [read_gguf_header(part) for part in paths]
    tensors: dict[str, GgufEntry] = {}
    places: dict[str, Path] = {}
    for number, (part, header) in enumerate(zip(paths, headers, strict=True)):
        _check_part(part, header, number, len(paths))
        for name, entry in header.tensors.items():
            if name in tensors:
                raise InputError(f"{part} holds the tensor {shown(name)}, which {places[name].name} holds too")
            tensors[name], places[name] = entry, part
    said = headers[0].metadata.get("split.tensors.count", len(tensors))
    if said != len(tensors):
        raise InputError(f"{paths[0]} says that there are {shown(said)} tensors; its parts hold {len(tensors)}")
    return GgufFiles(paths, headers[0].metadata, tensors, places)


def _check_part(path: Path, header: GgufHeader, number: int, count: int) -> None:
    """Refuse a part that says itself to be another one.

    Raises:
        InputError: It does.
    """
    said = header.metadata.get("split.count", 1), header.metadata.get("split.no", 0)
    if count == 1 and said[0] not in (0, 1):
        raise InputError(f"{path} is one of {shown(said[0])} files; give them the names that `gguf-split` gives")
    if count > 1 and said != (count, number):
        raise InputError(f"{path} says to be part {shown(said[1])} of {shown(said[0])}, counted from 0")
