"""Rotary position embedding: its settings, and its tables of cosines and sines."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.models.fields import integer, mapping, number

_BASES = (1.0, 1e15)  # published ones are from 1e4 to 1e9; beyond, frequencies are no numbers in f32
_FACTORS = (1e-3, 1e6)


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the frequencies are stretched for longer texts than a model was first trained on; Hugging Face's names.

    Attributes:
        rope_type: ``linear`` divides every frequency by ``factor``; ``llama3`` only those of long waves.
        low_freq_factor: Waves longer than ``original_max_position_embeddings`` over this are divided.
        high_freq_factor: Waves shorter than ``original_max_position_embeddings`` over this stay; between the two, a
            blend.
    """

    rope_type: str
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation of one kind of block."""

    theta: float
    scaling: RopeScaling | None = None

    def inverse_frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """Return radians a position, [D/2], in f32 as transformers computes them."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        inverse: NDArray[np.float32] = np.float32(1) / np.power(np.float32(self.theta), exponents)
        if self.scaling is None:
            return inverse
        scaled = inverse / np.float32(self.scaling.factor)
        return scaled if self.scaling.rope_type == "linear" else _blend(self.scaling, inverse, scaled)

    def tables(self, head_dim: int, n_tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return cos and sin [T, D/2] of position times inverse frequency."""
        angles = np.arange(n_tokens, dtype=np.float32)[:, None] * self.inverse_frequencies(head_dim)[None, :]
        return np.cos(angles), np.sin(angles)


def _blend(scaling: RopeScaling, inverse: NDArray[np.float32], scaled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``scaled`` for long waves, ``inverse`` for short ones, and a blend between (Llama 3.1)."""
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    waves = np.float32(scaling.original_max_position_embeddings) * inverse / np.float32(2 * pi)
    share = np.clip((waves - low) / (high - low), np.float32(0), np.float32(1))
    blended: NDArray[np.float32] = scaled + share * (inverse - scaled)
    return blended


def read_rope(data: Mapping[str, Any], local: bool, where: str) -> tuple[Rope, Rope | None]:
    """Read the RoPE settings of a ``config.json``, of which transformers 4 and 5 have different spellings.

    Args:
        data: The file.
        local: Whether blocks with a sliding window have settings of their own.
        where: What error messages call the file.

    Returns:
        The settings of all blocks (or those without a window), and of the blocks with one if they have their own.

    Raises:
        InputError: Malformed, or a kind of scaling that is not modelled.
    """
    parameters = mapping(data, "rope_parameters", where)
    if local and ("full_attention" in parameters or "sliding_attention" in parameters):
        full, sliding = (mapping(parameters, key, where) for key in ("full_attention", "sliding_attention"))
    else:
        full, sliding = parameters or mapping(data, "rope_scaling", where), {}
    own = Rope(_theta(full, data, "rope_theta", where), _read_scaling(full, where))
    if not local:
        return own, None
    if _read_scaling(sliding, where) is not None:
        raise InputError(f"{where}: RoPE scaling of sliding_attention is not supported")
    return own, Rope(_theta(sliding, data, "rope_local_base_freq", where))


def _theta(rope: Mapping[str, Any], data: Mapping[str, Any], key: str, where: str) -> float:
    return number({key: rope.get("rope_theta", data.get(key))}, key, where, *_BASES)


def _read_scaling(rope: Mapping[str, Any], where: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise InputError(f"{where}: RoPE scaling {shown(kind)} is not supported; memsim has linear and llama3")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{where}: partial_rotary_factor {shown(rope['partial_rotary_factor'])} is not supported")
    if kind == "default":
        return None
    factor = number(rope, "factor", where, *_FACTORS)
    if kind == "linear":
        return RopeScaling("linear", factor)
    low, high = (number(rope, f"{end}_freq_factor", where, *_FACTORS) for end in ("low", "high"))
    if not low < high:
        raise InputError(f"{where}: 'low_freq_factor' {low} must be below 'high_freq_factor' {high}")
    return RopeScaling("llama3", factor, low, high, integer(rope, "original_max_position_embeddings", where))
