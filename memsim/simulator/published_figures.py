"""The published measurements of MeBP and MeZO on a phone: what the simulator is held against."""

from dataclasses import dataclass

from memsim.models.lora import LoraConfig

SOURCE = "MeBP (arXiv 2510.03425), table 1: iPhone 15 Pro Max, batch 1"
DEVICE = "iphone-15-pro-max"
SEQ_LEN = 256
REPETITIONS = 10
"""Steps in a row of which the paper gives the mean."""

LORA = LoraConfig(rank=8)
"""Rank 8 on all seven projections: gives the paper's trainable parameters for all five models."""

GROUP_SIZE = 32
"""Columns that share one 16-bit scale: 4.5 bits a weight, as the published 64 with scale and bias."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One published cell.

    Attributes:
        step_s: Mean seconds of a gradient step.
        peak_bytes: Peak phys_footprint of the app.
    """

    model: str
    method: str
    step_s: float
    peak_bytes: int


def _row(model: str, mezo_s: float, mebp_s: float, mezo_mb: int, mebp_mb: int) -> tuple[Measurement, Measurement]:
    mb = 10**6
    return Measurement(model, "mezo", mezo_s, mezo_mb * mb), Measurement(model, "mebp", mebp_s, mebp_mb * mb)


TABLE: tuple[Measurement, ...] = (
    *_row("qwen2.5-0.5b", 2.68, 3.85, 319, 320),
    *_row("qwen2.5-1.5b", 5.47, 9.09, 452, 460),
    *_row("qwen2.5-3b", 10.28, 17.96, 554, 662),
    *_row("gemma3-1b", 4.88, 9.48, 564, 569),
    *_row("gemma3-4b", 16.86, 28.58, 962, 1029),
)
