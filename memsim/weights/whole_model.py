"""A whole model that was trained, on disk: a Hugging Face directory, which ``--model`` takes again."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.files import atomic_write, write_text
from memsim.models.config import ModelConfig
from memsim.models.parts import TensorSpec, vectors
from memsim.models.tiles import parts_in_turn, tiled_matrices
from memsim.weights.adapters import FLUSH_BYTES
from memsim.weights.readers.hugging_face import CONFIG_FILE, hugging_face_name
from memsim.weights.tensor_file import TensorFileWriter
from memsim.weights.trained import norm_offset

MODEL_FILE = "model.safetensors"

Tensors = Callable[[], Iterable[tuple[str, str, NDArray[Any]]]]
"""Yields (part, name, values), one at a time, each time that it is called."""


def write_whole_model(
    directory: Path, tensors: Tensors, tiles: Tensors, config: ModelConfig, eos_token_id: int | None
) -> None:
    """Write ``config.json`` and ``model.safetensors``, each file atomically, a tile in memory at a time.

    Args:
        directory: Created if missing.
        tensors: All vectors, float32, in the order of ``parts_in_turn``.
        tiles: All matrices, the bits of bf16, in tiles of rows, in that order.
        config: The model.
        eos_token_id: Its end-of-text token, if known.

    Raises:
        InputError: The directory cannot be written, or the disk is full.
        ValueError: The tensors are not those of the model, in order.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {directory}: {error.strerror or error}") from error
    names = [(part, name, shape) for part in parts_in_turn(config) for name, shape in vectors(config, part).items()]
    specs = {hugging_face_name(part, name, config.family): TensorSpec(shape, "f32") for part, name, shape in names}
    for matrix in tiled_matrices(config).values():
        key = hugging_face_name(matrix.part, f"{matrix.name}.weight", config.family)
        specs[key] = TensorSpec((matrix.n_rows, matrix.n_columns), "bf16")
    with atomic_write(directory / MODEL_FILE) as file:
        writer = TensorFileWriter(file, specs, tensor_alignment=1, data_alignment=8, flush_bytes=FLUSH_BYTES)
        for part, name, values in tensors():
            offset: np.float32 = norm_offset(name, config)
            writer.write(hugging_face_name(part, name, config.family), values - offset)
        for part, name, bits in tiles():
            writer.write(hugging_face_name(part, f"{name}.weight", config.family), bits)
        writer.finish()
    described = config.to_dict() | {"dtype": "bfloat16"}
    if eos_token_id is not None:
        described["eos_token_id"] = eos_token_id
    write_text(directory / CONFIG_FILE, json.dumps(described, indent=2) + "\n")
