"""Rotary position embedding: its settings; ``rope_tables`` has what follows from them."""

from dataclasses import dataclass


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
