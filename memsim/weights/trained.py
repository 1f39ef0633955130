"""What was trained, on disk: in PEFT's format where PEFT has one for the scheme, else under the checkpoint's names."""

import json
from collections.abc import Callable, Iterable, Iterator
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
from memsim.weights.adapters import CONFIG_FILE, FLUSH_BYTES, WEIGHTS_FILE, write_adapter
from memsim.weights.checkpoint import hugging_face_name
from memsim.weights.tensor_file import TensorFileWriter

TRAINED_FILE = "trained.safetensors"
"""Where PEFT has no format: a part of a checkpoint, to load over it (``load_state_dict(..., strict=False)``)."""

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
    if isinstance(scheme, LoraConfig):
        blocks = ((int(part.removeprefix("block_")), name, values) for part, name, values in tensors())
        write_adapter(directory, blocks, config, scheme, base_model)
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {directory}: {error.strerror or error}") from error
    peft = _peft_config(config, scheme)
    specs, chunks = _layout(tensors, config, scheme, in_peft=bool(peft))
    with atomic_write(directory / (WEIGHTS_FILE if peft else TRAINED_FILE)) as file:
        # No pad tensors: PEFT would report them as unexpected keys.
        writer = TensorFileWriter(file, specs, tensor_alignment=1, data_alignment=8, flush_bytes=FLUSH_BYTES)
        for key, values in chunks:
            writer.write(key, values)
        writer.finish()
    if peft:
        peft |= {"base_model_name_or_path": base_model, "inference_mode": True, "task_type": "CAUSAL_LM"}
        write_text(directory / CONFIG_FILE, json.dumps(peft, indent=2) + "\n")


def _peft_config(config: ModelConfig, scheme: Scheme) -> dict[str, Any]:
    """Return PEFT's settings of ``scheme``; empty where it has none for it."""
    if isinstance(scheme, Prompt):
        return _virtual_tokens(config, scheme, "PROMPT_TUNING", config.hidden_size, config.num_attention_heads)
    if isinstance(scheme, Prefix):
        heads = config.num_key_value_heads
        settings = _virtual_tokens(config, scheme, "PREFIX_TUNING", heads * config.head_dim, heads)
        return settings | {"prefix_projection": False, "encoder_hidden_size": heads * config.head_dim}
    biased = any(config.has_bias(name) for name in config.projections())
    if isinstance(scheme, Norms) and not biased:  # PEFT's would keep a copy of each whole matrix that has a bias
        modules = {_module(part, name, config).rpartition(".")[2] for part, name in _names(config, scheme)}
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


def _layout(
    tensors: Tensors, config: ModelConfig, scheme: Scheme, in_peft: bool
) -> tuple[dict[str, TensorSpec], Chunks]:
    """Return the tensors of the file, and their values in chunks."""
    if isinstance(scheme, Prompt):
        spec = TensorSpec((scheme.virtual_tokens, config.hidden_size), "f32")
        return {"prompt_embeddings": spec}, (("prompt_embeddings", values) for _, _, values in tensors())
    if isinstance(scheme, Prefix):
        columns = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
        spec = TensorSpec((scheme.virtual_tokens, columns), "f32")
        # A row of the file is one virtual token: keys and values of block after block.
        rows = ((row, values) for row in range(scheme.virtual_tokens) for _, _, values in tensors())
        return {"prompt_embeddings": spec}, (("prompt_embeddings", values[row]) for row, values in rows)
    names = _names(config, scheme)
    keys = {place: _key(*place, config, in_peft) for place in names}
    offsets = {place: norm_offset(place[1], config) for place in names}
    specs = {keys[place]: TensorSpec(shape, "f32") for place, shape in names.items()}
    return specs, ((keys[part, name], values - offsets[part, name]) for part, name, values in tensors())


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


def _key(part: str, name: str, config: ModelConfig, in_peft: bool) -> str:
    if name == "score.weight":  # of transformers' decoders for sequence classification, beside the model
        return name
    kind = name.rpartition(".")[2]
    module = _module(part, name, config)
    return f"base_model.model.{module}.ln_tuning_layers.{kind}" if in_peft else f"{module}.{kind}"
