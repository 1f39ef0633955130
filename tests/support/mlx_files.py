"""MLX directories for tests: matrices quantised and packed as ``mlx.core.quantize`` does it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def mlx_quantize(weights: np.ndarray, bits: int, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return levels [N, K], and float16 scales and biases [N, K / group_size]: weight = scale * level + bias."""
    groups = weights.reshape(len(weights), -1, group_size).astype(np.float32)
    largest, smallest = groups.max(axis=2), groups.min(axis=2)
    scales = np.maximum((largest - smallest) / (2**bits - 1), np.float32(1e-7))
    scales = np.where(np.abs(smallest) > np.abs(largest), scales, -scales)
    edges = np.where(np.abs(smallest) > np.abs(largest), smallest, largest)
    at_zero = np.rint(edges / scales)
    scales = np.where(at_zero != 0, edges / np.where(at_zero != 0, at_zero, 1), scales)
    biases = np.where(at_zero == 0, 0, edges)
    levels = np.clip(np.rint((groups - biases[:, :, None]) / scales[:, :, None]), 0, 2**bits - 1)
    return levels.reshape(weights.shape).astype(np.uint8), scales.astype(np.float16), biases.astype(np.float16)


def symmetric(weights: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 4-bit levels, scales and biases in which level 8 is 0: what symmetric INT4 holds without loss."""
    groups = weights.reshape(len(weights), -1, group_size)
    scales = (np.abs(groups).max(axis=2) / 7).astype(np.float16)
    levels = np.clip(np.rint(groups / scales[:, :, None].astype(np.float32)), -8, 7) + 8
    return levels.reshape(weights.shape).astype(np.uint8), scales, -8 * scales


def mlx_values(levels: np.ndarray, scales: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Return the weights that MLX computes with, in float32."""
    group_size = levels.shape[1] // scales.shape[1]
    scales, biases = (np.repeat(part.astype(np.float32), group_size, axis=1) for part in (scales, biases))
    return levels * scales + biases


def mlx_packed(levels: np.ndarray, bits: int) -> np.ndarray:
    """Return the levels of each row as one stream of bits in dwords, lowest first."""
    n_rows, n_columns = levels.shape
    packed = np.zeros((n_rows, n_columns * bits // 32), np.uint32)
    for row in range(n_rows):
        stream = sum(int(level) << (bits * column) for column, level in enumerate(levels[row]))
        packed[row] = np.frombuffer(stream.to_bytes(n_columns * bits // 8, "little"), "<u4")
    return packed


def write_mlx(
    directory: Path,
    config: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    quantized: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    bits: int = 4,
    prefix: str = "",
) -> Path:
    """Write ``quantized`` matrices (levels, scales, biases) by name, and everything else of ``state`` in float16."""
    directory.mkdir()
    tensors = {prefix + name: values.astype(np.float16) for name, values in state.items() if name not in quantized}
    for name, (levels, scales, biases) in quantized.items():
        stem = prefix + name.removesuffix(".weight")
        tensors |= {f"{stem}.weight": mlx_packed(levels, bits), f"{stem}.scales": scales, f"{stem}.biases": biases}
    save_file(tensors, directory / "model.safetensors")
    group_size = next(levels.shape[1] // scales.shape[1] for levels, scales, _ in quantized.values())
    quantization = {"quantization": {"group_size": group_size, "bits": bits}}
    (directory / "config.json").write_text(json.dumps({**config, **quantization}))
    return directory
