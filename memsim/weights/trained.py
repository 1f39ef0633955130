"""What was trained, on disk: in PEFT's format where PEFT has one for the scheme, else under the checkpoint's names."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.files import atomic_write, write_text
from memsim.models.config import ModelConfig
from memsim.models.lora import LoraConfig
from memsim.models.parts import TensorSpec, part_names
from memsim.models.scheme import Scheme
from memsim.models.schemes import Norms, Prefix, Prompt
from memsim.weights.adapters import (
    CONFIG_FILE,
    FLUSH_BYTES,
    WEIGHTS_FILE,
    lora_settings,
    peft_task,
    tensor_key,
    write_adapter,
)
from memsim.weights.readers.hugging_face import hugging_face_name
from memsim.weights.tensor_file import TensorFileWriter

TRAINED_FILE = "trained.safetensors"
"""Where PEFT has no format: a part of a checkpoint, to load over it (``load_state_dict(..., strict=False)``)."""

_CLASSIFIERS = ("score.", "classifier.")

Floats = NDArray[np.float32]
Tensors = Callable[[], Iterable[tuple[str, str, Floats]]]
"""Yields (part, name, values), one at a time, each time that it is called."""

Chunks = Iterator[tuple[str, Floats]]


def write_trained(directory: Path, tensors: Tensors, config: ModelConfig, scheme: Scheme, base_model: str) -> None:
    """Write what was trained into ``directory``, each file atomically.

    Args:
        directory: Created if missing.
        tensors: All that ``scheme`` trains, part by part in the order of ``Scheme.shapes``.
        config: The base model.
        scheme: What was trained.
        base_model: What PEFT shall call the base model.

    Raises:
        InputError: The directory cannot be written, or the disk is full.
        ValueError: ``tensors`` are not those of the model and the scheme, in order.
    """
    if isinstance(scheme, LoraConfig) and not scheme.labels:
        blocks = ((int(part.removeprefix("block_")), name, values) for part, name, values in tensors())
        write_adapter(directory, blocks, config, scheme, base_model)
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {directory}: {error.strerror or error}") from error
    peft = _peft_config(config, scheme)
    specs, chunks = _layout(tensors, config, scheme, str(peft.get("peft_type", "")))
    with atomic_write(directory / (WEIGHTS_FILE if peft else TRAINED_FILE)) as file:
        # No pad tensors: PEFT would report them as unexpected keys.
        writer = TensorFileWriter(file, specs, tensor_alignment=1, data_alignment=8, flush_bytes=FLUSH_BYTES)
        for key, values in chunks:
            writer.write(key, values)
        writer.finish()
    if peft:
        settings = peft | peft_task(config, scheme, base_model)
        write_text(directory / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")


def _peft_config(config: ModelConfig, scheme: Scheme) -> dict[str, Any]:
    """Return PEFT's settings of ``scheme``; empty where it has none for it."""
    if isinstance(scheme, LoraConfig):
        return lora_settings(config, scheme)
    if isinstance(scheme, Prompt):
        return _virtual_tokens(config, scheme, "PROMPT_TUNING", config.hidden_size, config.num_attention_heads)
    if isinstance(scheme, Prefix):
        heads = config.num_key_value_heads
        settings = _virtual_tokens(config, scheme, "PREFIX_TUNING", heads * config.head_dim, heads)
        return settings | {"prefix_projection": False, "encoder_hidden_size": heads * config.head_dim}
    biased = any(config.has_bias(name) for name in config.projections())
    if isinstance(scheme, Norms) and not biased:  # PEFT's would keep a copy of each whole matrix that has a bias
        names = [(part, name) for part, name in _names(config, scheme) if not name.startswith(_CLASSIFIERS)]
        modules = {_module(part, name, config).rpartition(".")[2] for part, name in names}
        return {"peft_type": "LN_TUNING", "target_modules": sorted(modules)}
    return {}


def _virtual_tokens(
    config: ModelConfig, scheme: Prompt | Prefix, kind: str, token_dim: int, heads: int
) -> dict[str, Any]:
    return {
        "peft_type": kind,
        "num_virtual_tokens": scheme.virtual_tokens,
        "token_dim": token_dim,
        "num_attention_heads": heads,
        "num_layers": config.num_hidden_layers,
        "num_transformer_submodules": 1,
    }


def _layout(tensors: Tensors, config: ModelConfig, scheme: Scheme, peft: str) -> tuple[dict[str, TensorSpec], Chunks]:
    """Return the tensors of the file, and their values in chunks."""
    names = _names(config, scheme)
    specs: dict[str, TensorSpec] = {}
    table: Chunks = iter(())
    if isinstance(scheme, Prompt | Prefix):
        specs, table = _table(tensors, config, scheme)
        names = {place: shape for place, shape in names.items() if place[0] == "head"}
    keys = {place: _key(*place, config, peft) for place in names}
    specs |= {keys[place]: TensorSpec(shape, "f32") for place, shape in names.items()}
    rest = (
        (keys[part, name], values - norm_offset(name, config))
        for part, name, values in tensors()
        if not isinstance(scheme, Prompt | Prefix) or part == "head"
    )
    return specs, chain(table, rest)


def _table(tensors: Tensors, config: ModelConfig, scheme: Prompt | Prefix) -> tuple[dict[str, TensorSpec], Chunks]:
    """Return the table of virtual tokens, and its values in chunks."""
    columns = config.hidden_size
    if isinstance(scheme, Prefix):
        columns = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    # A row of the file is one virtual token: of a prefix, keys and values of block after block.
    rows = (
        ("prompt_embeddings", values[row])
        for row in range(scheme.virtual_tokens)
        for part, _, values in tensors()
        if part != "head"
    )
    return {"prompt_embeddings": TensorSpec((scheme.virtual_tokens, columns), "f32")}, rows


def _names(config: ModelConfig, scheme: Scheme) -> dict[tuple[str, str], tuple[int, ...]]:
    """Return (part, name) -> shape of all that is trained, in the order in which a session yields it."""
    embed, *blocks, head = part_names(config)
    parts = (*blocks, embed, head)
    return {(part, name): shape for part in parts for name, shape in scheme.shapes(config, part).items()}


def norm_offset(name: str, config: ModelConfig) -> np.float32:
    """Return what a checkpoint's norm weight lacks of the factor that we train: Gemma's are 1 + w."""
    return np.float32(config.family.norm_offset if name.endswith("norm.weight") else 0.0)


def _module(part: str, name: str, config: ModelConfig) -> str:
    return hugging_face_name(part, name, config.family).rpartition(".")[0]


def _key(part: str, name: str, config: ModelConfig, peft: str) -> str:
    """Return the name of a tensor in a file of PEFT's type ``peft``, or of a checkpoint if that is empty."""
    outer = {"": "", "PROMPT_TUNING": "base_model.", "PREFIX_TUNING": "base_model."}.get(peft, "base_model.model.")
    if name.startswith(_CLASSIFIERS):  # of transformers' classes for sequences, beside the model
        return outer + name
    if peft == "LORA":
        return tensor_key(int(part.removeprefix("block_")), name, config.family)
    kind = name.rpartition(".")[2]
    module = _module(part, name, config)
    return f"{outer}{module}.ln_tuning_layers.{kind}" if peft else f"{module}.{kind}"
