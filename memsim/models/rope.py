"""Rotary position embedding: its settings, and its tables of cosines and sines."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frequencies = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the frequencies are stretched for longer texts than a model was first trained on; Hugging Face's names.

    Attributes:
        rope_type: ``linear`` divides every frequency by ``factor``; ``llama3`` and ``yarn`` only those of long waves.
        low_freq_factor: Of ``llama3``: waves longer than ``original_max_position_embeddings`` over this are divided.
        high_freq_factor: Waves shorter than ``original_max_position_embeddings`` over this stay; between the two, a
            blend.
        beta_fast: Of ``yarn``: what turns more often than this in ``original_max_position_embeddings`` stays.
        beta_slow: What turns less often than this is divided; between the two, a blend.
        truncate: Of ``yarn``: whether the ends of the blend are moved outwards to whole frequencies.
        attention_factor: Of ``yarn``: what cosines and sines are multiplied by.
    """

    rope_type: str
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    attention_factor: float | None = None


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation of one kind of block."""

    theta: float
    scaling: RopeScaling | None = None

    def inverse_frequencies(self, head_dim: int) -> Frequencies:
        """Return radians a position, [D/2], in f32 as transformers computes them."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        inverse: Frequencies = np.float32(1) / np.power(np.float32(self.theta), exponents)
        if self.scaling is None:
            return inverse
        scaled = inverse / np.float32(self.scaling.factor)
        if self.scaling.rope_type == "linear":
            return scaled
        if self.scaling.rope_type == "yarn":
            return _yarn(self.scaling, self.theta, inverse, scaled)
        return _blend(self.scaling, inverse, scaled)

    def tables(self, head_dim: int, n_tokens: int) -> tuple[Frequencies, Frequencies]:
        """Return cos and sin [T, D/2] of position times inverse frequency."""
        angles = np.arange(n_tokens, dtype=np.float32)[:, None] * self.inverse_frequencies(head_dim)[None, :]
        factor = np.float32(1.0 if self.scaling is None else self.scaling.attention_factor or 1.0)
        return np.cos(angles) * factor, np.sin(angles) * factor


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
