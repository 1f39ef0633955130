"""The constants of a model's block programs: RoPE's tables of cosines and sines."""

import math

import numpy as np
from numpy.typing import NDArray

from memsim.models.config import ModelConfig
from memsim.models.rope import Rope, RopeScaling

Frequencies = NDArray[np.float32]


def constant_values(config: ModelConfig, n_tokens: int, first_position: int = 0) -> dict[str, Frequencies]:
    """Return the values of ``decoder.constants`` for tokens from ``first_position`` on."""
    values: dict[str, Frequencies] = {}
    for name, rope in config.ropes().items():
        both = rope_tables(rope, config.head_dim, first_position + n_tokens)
        values |= {f"{name}.{wave}": table[first_position:] for wave, table in zip(("cos", "sin"), both, strict=True)}
    return values


def rope_tables(rope: Rope, head_dim: int, n_tokens: int) -> tuple[Frequencies, Frequencies]:
    """Return cos and sin [T, D/2] of position times inverse frequency."""
    angles = np.arange(n_tokens, dtype=np.float32)[:, None] * inverse_frequencies(rope, head_dim)[None, :]
    factor = np.float32(1.0 if rope.scaling is None else rope.scaling.attention_factor or 1.0)
    return np.cos(angles) * factor, np.sin(angles) * factor


def inverse_frequencies(rope: Rope, head_dim: int) -> Frequencies:
    """Return radians a position, [D/2], in f32 as transformers computes them."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse: Frequencies = np.float32(1) / np.power(np.float32(rope.theta), exponents)
    if rope.scaling is None:
        return inverse
    scaled = inverse / np.float32(rope.scaling.factor)
    if rope.scaling.rope_type == "linear":
        return scaled
    if rope.scaling.rope_type == "yarn":
        return _yarn(rope.scaling, rope.theta, inverse, scaled)
    return _blend(rope.scaling, inverse, scaled)


def _blend(scaling: RopeScaling, inverse: Frequencies, scaled: Frequencies) -> Frequencies:
    """Return ``scaled`` for long waves, ``inverse`` for short ones, and a blend between (Llama 3.1)."""
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    waves = np.float32(scaling.original_max_position_embeddings) * inverse / np.float32(2 * math.pi)
    share = np.clip((waves - low) / (high - low), np.float32(0), np.float32(1))
    blended: Frequencies = scaled + share * (inverse - scaled)
    return blended


def _yarn(scaling: RopeScaling, theta: float, inverse: Frequencies, scaled: Frequencies) -> Frequencies:
    """Return the same by how often each frequency turns in the original length (YaRN, arXiv 2309.00071, 3.2)."""
    assert scaling.original_max_position_embeddings and scaling.beta_fast and scaling.beta_slow
    original, dim = scaling.original_max_position_embeddings, 2 * len(inverse)

    def index(turns: float) -> float:
        """Return which frequency turns so often."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    share = np.clip((np.arange(len(inverse), dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    share = np.float32(1) - share.astype(np.float32)
    blended: Frequencies = scaled * (np.float32(1) - share) + inverse * share
    return blended
