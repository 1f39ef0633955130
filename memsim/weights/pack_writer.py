"""Writing a pack: the parts in any order, then ``pack.json``, which makes it one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memsim.files import write_text
from memsim.models.config import ModelConfig
from memsim.models.matrix_formats import Packing, formats_of
from memsim.models.parts import part_names, part_tensors
from memsim.weights.pack import BYTES, PACK_FILE, describe_formats, model_hash, part_file_name
from memsim.weights.tensor_file import TensorFileWriter, file_bytes


def pack_bytes(config: ModelConfig, packing: Packing) -> int:
    """Return the exact size of all parts of a pack."""
    return sum(file_bytes(part_tensors(config, part, packing)) for part in part_names(config))


class PackWriter:
    """Writes the files of one pack into a directory, usually from ``staged_directory``."""

    def __init__(self, directory: Path, config: ModelConfig, packing: Packing) -> None:
        """Start a pack in the existing, empty ``directory``."""
        self._directory = directory
        self._config = config
        self._formats = formats_of(packing)
        self._parts: dict[str, dict[str, Any]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[TensorFileWriter]:
        """Yield the writer of one part's file; every tensor of ``part_tensors`` must be written, in its order."""
        with (self._directory / part_file_name(name)).open("wb") as file:
            writer = TensorFileWriter(file, part_tensors(self._config, name, self._formats))
            yield writer
            sha256 = writer.finish()
        self._parts[name] = {"file": part_file_name(name), "n_bytes": writer.n_bytes, "sha256": sha256}

    def finish(
        self, source: str, seed: int | None = None, eos_token_id: int | None = None, tokenizer: str = BYTES
    ) -> None:
        """Write ``pack.json``.

        Args:
            source: ``synthetic`` or ``packed``.
            seed: Of synthetic weights.
            eos_token_id: End-of-text token, if known.
            tokenizer: What its tokenizer.json was made of, ``bytes`` for a model of bytes, or what was found instead.
        """
        checksums = {name: part["sha256"] for name, part in self._parts.items()}
        stored = describe_formats(self._config, self._formats)
        description = {
            "schema": stored.pop("schema"),
            "source": source,
            "seed": seed,
            **stored,
            "eos_token_id": eos_token_id,
            "tokenizer": tokenizer,
            "model_hash": model_hash(self._config, self._formats, checksums),
            "config": self._config.to_dict(),
            "parts": {name: self._parts[name] for name in part_names(self._config)},
        }
        write_text(self._directory / PACK_FILE, json.dumps(description, indent=2) + "\n")
