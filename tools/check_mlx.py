"""An MLX 4-bit directory by MLX's own formula, made of a model of transformers (for ``check_checkpoints``)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from memsim.models.parts import matrices, part_names
from memsim.weights.pack import Pack
from memsim.weights.quantize import dequantize
from memsim.weights.readers.formats import open_source
from memsim.weights.readers.hugging_face import hugging_face_name
from memsim.weights.tensor_file import map_file, read_header, view

BITS, GROUP_SIZE = 4, 64
LEVELS = 2**BITS - 1


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return packed levels [N, K / 8], and float16 scales and biases [N, K / 64], as ``mlx.core.quantize`` makes them.

    The end of a group's range that is farther from zero is a level exactly, and so is zero.
    """
    groups = weight.reshape(len(weight), -1, GROUP_SIZE)
    largest, smallest = groups.amax(2), groups.amin(2)
    below = smallest.abs() > largest.abs()
    scales = ((largest - smallest) / LEVELS).clamp(min=1e-7)
    scales = torch.where(below, scales, -scales)
    edges = torch.where(below, smallest, largest)
    steps = torch.round(edges / scales)
    scales = torch.where(steps != 0, edges / torch.where(steps != 0, steps, 1), scales)
    biases = torch.where(steps == 0, 0, edges)
    levels = torch.round((groups - biases[:, :, None]) / scales[:, :, None]).clamp(0, LEVELS).to(torch.int64)
    places = 2 ** (BITS * torch.arange(8))
    packed = (levels.reshape(len(weight), -1, 8) * places).sum(2).to(torch.uint32)
    return packed, scales.half(), biases.half()


def values(packed: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
    """Return the weights that MLX computes with, in float32."""
    shifts = BITS * torch.arange(8)
    levels = (packed.to(torch.int64)[:, :, None] >> shifts) & LEVELS
    groups = levels.reshape(*scales.shape, GROUP_SIZE).float()
    weights: torch.Tensor = groups * scales.float()[:, :, None] + biases.float()[:, :, None]
    return weights.reshape(len(packed), -1)


def mlx_directory(model: Any, gguf: Path, directory: Path) -> tuple[Path, Any]:
    """Write the directory; return it, and the model with the weights of the directory.

    Args:
        model: Transformers'; its matrices are changed to what the directory holds.
        gguf: The file that it was read from, whose tokenizer the directory gets.
        directory: Is created.
    """
    directory.mkdir()
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2:
            state[name] = parameter.data.half()
            parameter.data = state[name].float()
            continue
        stem = name.removesuffix(".weight")
        state[name], state[f"{stem}.scales"], state[f"{stem}.biases"] = quantized(parameter.data)
        parameter.data = values(*(state[f"{stem}.{kind}"] for kind in ("weight", "scales", "biases")))
    save_file(state, directory / "model.safetensors", {"format": "mlx"})
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    own = {"group_size": GROUP_SIZE, "bits": BITS}
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    (directory / "config.json").write_text(
        json.dumps(config | {"quantization": own, "quantization_config": own}, default=str)
    )
    (directory / "tokenizer.json").write_text(open_source(gguf).tokenizer().text or "")
    return directory, model


def wrong_weights(pack: Pack, model: Any) -> tuple[int, int]:
    """Return how many weights of the pack's matrices differ in a bit from the model's, and of how many."""
    state = dict(model.named_parameters())
    wrong = total = 0
    for part in part_names(pack.config):
        path = pack.part(part).path
        entries, mapped = read_header(path), map_file(path)
        for name, (rows, columns) in matrices(pack.config, part).items():
            q, scales = (view(mapped, entries[f"{name}.{kind}"]) for kind in ("q", "scales"))
            ours = dequantize(q, scales, rows, columns, pack.formats.of(part, name))
            theirs = state[hugging_face_name(part, f"{name}.weight", pack.config.family)].detach().numpy()
            wrong += int(np.sum(ours.view(np.uint32) != theirs.view(np.uint32)))
            total += ours.size
    return wrong, total
