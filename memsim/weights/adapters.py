"""LoRA adapters on disk, in PEFT's format, so that other tools can load what memsim trained.

Over 250 lines: PEFT's format is written and read by the same names.
"""

import json
import re
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError, UsageError
from memsim.files import atomic_write, write_text
from memsim.json_file import read_object, shown
from memsim.models.config import ModelConfig
from memsim.models.family import DECODER, Family
from memsim.models.lora import LoraConfig, adapter_shapes, check_lora, module_names
from memsim.models.parts import TensorSpec
from memsim.models.scheme import Scheme
from memsim.weights.tensor_file import TensorEntry, TensorFileWriter, map_file, read_header, view

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 16 << 20
FLUSH_BYTES = 256 << 10
# Features of PEFT that change y = W x + scale * B (A x), with the value that leaves them out.
_UNSUPPORTED = {"use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "lora_bias": False, "bias": "none"}
_UNSUPPORTED_LISTS = (
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
)

# A block's number, and the whole name of a module in it.
_PATTERN = r".*\.\d+\.({})"
# The same inside a multimodal model, whose other half has modules of the same names.
_LANGUAGE_MODEL_PATTERN = r".*language_model\.layers\.\d+\.({})"

Adapter = Mapping[tuple[int, str], NDArray[np.float32]]


def tensor_key(block: int, name: str, family: Family = DECODER) -> str:
    """Return PEFT's key for adapter tensor ``name`` (``self_attn.q_proj.lora_A``) of ``block``."""
    module, _, kind = name.rpartition(".")
    return f"base_model.model.{family.blocks.format(block)}{family.names.get(module, module)}.{kind}.weight"


def write_adapter(
    directory: Path,
    tensors: Iterable[tuple[int, str, NDArray[np.float32]]],
    config: ModelConfig,
    lora: LoraConfig,
    base_model: str,
) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` into ``directory``, each atomically.

    Args:
        directory: Created if missing.
        tensors: (block, name, values) by block, and within a block in the order of ``adapter_shapes``; taken one at a
            time, so that the footprint is that of one tensor plus 256 KiB of unwritten file.
        config: The base model.
        lora: Rank, alpha and targets.
        base_model: What PEFT shall call the base model.

    Raises:
        InputError: The directory cannot be written, or the disk is full.
        ValueError: ``tensors`` are not those of the model and LoRA configuration, in order.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {directory}: {error.strerror or error}") from error
    specs = {
        tensor_key(*name, config.family): TensorSpec(shape, "f32") for name, shape in _shapes(config, lora).items()
    }
    with atomic_write(directory / WEIGHTS_FILE) as file:
        # No pad tensors: PEFT would report them as unexpected keys.
        writer = TensorFileWriter(file, specs, tensor_alignment=1, data_alignment=8, flush_bytes=FLUSH_BYTES)
        for block, name, values in tensors:
            key = tensor_key(block, name, config.family)
            if key not in specs or values.shape != specs[key].shape:
                raise ValueError(f"{key} of shape {values.shape} is not a tensor of this adapter")
            writer.write(key, values)
        writer.finish()
    settings = lora_settings(config, lora) | peft_task(config, lora, base_model)
    write_text(directory / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")


def read_adapter(directory: Path, config: ModelConfig) -> tuple[LoraConfig, Adapter]:
    """Read an adapter in PEFT's format, untrusted.

    Returns:
        Its LoRA configuration and (block, name) -> values in the order of ``write_adapter``. Float32 tensors are
        read-only views of the mapped file; others are converted.

    Raises:
        InputError: Malformed, a feature that memsim does not have, or tensors that do not fit the model.
    """
    lora = _lora_config(directory / CONFIG_FILE, config)
    path = directory / WEIGHTS_FILE
    entries = read_header(path, _MAX_HEADER_BYTES)
    shapes = _shapes(config, lora)
    for (block, name), shape in shapes.items():
        key = tensor_key(block, name, config.family)
        entry = entries.pop(key, None)
        if entry is None:
            raise InputError(f"{path} has no tensor {key!r}")
        if entry.shape != shape or entry.dtype not in ("f32", "f16", "bf16"):
            found = f"{entry.dtype} {list(entry.shape)}"
            raise InputError(f"{path}: {key!r} is {found}; the model needs f32 {list(shape)}")
    if entries:
        raise InputError(f"{path} holds the unknown tensor {shown(next(iter(entries)))}")
    return lora, _values(path, shapes, config.family)


def _shapes(config: ModelConfig, lora: LoraConfig) -> dict[tuple[int, str], tuple[int, int]]:
    shapes = adapter_shapes(config, lora)
    return {(block, name): shape for block in range(config.num_hidden_layers) for name, shape in shapes.items()}


def _values(path: Path, shapes: Mapping[tuple[int, str], tuple[int, int]], family: Family) -> Adapter:
    entries, mapped = read_header(path, _MAX_HEADER_BYTES), map_file(path)
    values = {}
    for block, name in shapes:
        key = tensor_key(block, name, family)
        values[block, name] = _as_float32(view(mapped, entries[key]), entries[key])
        if not np.isfinite(values[block, name]).all():
            raise InputError(f"{path}: {key!r} holds NaN or infinite values")
    return values


def _as_float32(stored: NDArray[Any], entry: TensorEntry) -> NDArray[np.float32]:
    if entry.dtype == "bf16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    # Another tool's header may leave the data unaligned, which compiled kernels refuse: that takes a copy.
    return np.require(stored, np.float32, "A")


def peft_task(config: ModelConfig, scheme: Scheme, base_model: str) -> dict[str, Any]:
    """Return what PEFT's settings say of the model that ``scheme`` was trained on.

    PEFT has no task of masked language models. A classifier is a module that it saves whole, under either name.
    """
    task: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if scheme.labels:
        task = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    elif not config.family.causal:
        task = {"task_type": None if scheme.adapter_rank else "FEATURE_EXTRACTION"}
    return {"base_model_name_or_path": base_model, "inference_mode": True, **task}


def lora_settings(config: ModelConfig, lora: LoraConfig) -> dict[str, Any]:
    """Return PEFT's settings of ``lora``."""
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": peft_targets(config, lora),
        "use_dora": False,
        "use_rslora": False,
    }


def peft_targets(config: ModelConfig, lora: LoraConfig) -> list[str] | str:
    """Return what PEFT calls the projections with an adapter.

    That is the shortest end of each name that no other projection has; or, where one name is the end of another
    (RoBERTa's ``output.dense`` and ``attention.output.dense``) and only one is meant, a regular expression; and so it
    is in a multimodal model, where only the language model is trained.
    """
    modules = module_names(config)
    chosen = [theirs for theirs, ours in modules.items() if lora.targets(ours)]
    if config.multimodal_type is not None:
        return _LANGUAGE_MODEL_PATTERN.format("|".join(map(re.escape, chosen)))
    ends = [_shortest_end(theirs, modules) for theirs in chosen]
    if {theirs for theirs in modules if any(_is_end(end, theirs) for end in ends)} == set(chosen):
        return ends
    return _PATTERN.format("|".join(map(re.escape, chosen)))


def _shortest_end(module: str, modules: Iterable[str]) -> str:
    others = [other for other in modules if other != module]
    words = module.split(".")
    ends = (".".join(words[start:]) for start in reversed(range(len(words))))
    return next((end for end in ends if not any(_is_end(end, other) for other in others)), module)


def _is_end(end: str, module: str) -> bool:
    """Return whether PEFT applies ``end``, of a list of names, to ``module``."""
    return f".{module}".endswith(f".{end}")


def _projections_of(targets: Any, config: ModelConfig, path: Path) -> tuple[str, ...]:
    """Return our short names of the projections that untrusted ``target_modules`` mean.

    Raises:
        InputError: They are no list of names, and no regular expression of ours; or one is unknown.
    """
    exact = False
    for pattern in (_LANGUAGE_MODEL_PATTERN, _PATTERN):
        start, end = pattern.split("{}")
        if isinstance(targets, str) and targets.startswith(start) and targets.endswith(end):
            exact, targets = True, targets[len(start) : -len(end)].replace("\\", "").split("|")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise InputError(f"{path}: target_modules must be a list of names, not {shown(targets)}")
    modules = module_names(config)
    found = {
        target: [name for name in modules if name == target or (not exact and _is_end(target, name))]
        for target in targets
    }
    unknown = [target for target, names in found.items() if not names]
    if unknown:
        known = ", ".join(_shortest_end(name, modules) for name in modules)
        raise InputError(f"{path}: target_modules {shown(unknown[0])} is unknown; known: {known}")
    meant = {name for names in found.values() for name in names}
    return tuple(ours.rpartition(".")[2] for theirs, ours in modules.items() if theirs in meant)


def _lora_config(path: Path, config: ModelConfig) -> LoraConfig:
    data = read_object(path, _MAX_CONFIG_BYTES)
    if data.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type {shown(data.get('peft_type'))} is not supported; memsim reads LORA")
    for key, neutral in _UNSUPPORTED.items():
        if data.get(key, neutral) != neutral:
            raise InputError(f"{path}: {key} = {shown(data[key])} is not supported")
    if data.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        # PiSSA and its like change the base weights, too.
        raise InputError(f"{path}: init_lora_weights {shown(data['init_lora_weights'])} is not supported")
    for key in _UNSUPPORTED_LISTS:
        if data.get(key):
            raise InputError(f"{path}: {key} is not supported")
    rank, alpha, targets = data.get("r"), data.get("lora_alpha"), data.get("target_modules")
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise InputError(f"{path}: r must be an integer, not {shown(rank)}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or abs(alpha) > 1e9 or not isfinite(alpha):
        raise InputError(f"{path}: lora_alpha must be a positive number, not {shown(alpha)}")
    lora = LoraConfig(rank, float(alpha), _projections_of(targets, config, path))
    try:
        check_lora(lora, config)
    except UsageError as error:
        raise InputError(f"{path} does not fit the model: {error}") from error
    return lora
