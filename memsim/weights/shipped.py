"""What memsim ships beside its code: a small trained model, and text that it has not seen.

``tools/pretrain_tiny.py`` made both; ``memsim/tiny/training.json`` says from what.
"""

from pathlib import Path
from typing import Literal, get_args

import memsim

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)

TINY = Path(memsim.__file__).parent / "tiny"
PACKS = {"tiny": TINY / "pack"}
"""Presets whose weights are here."""


def shipped_text(split: Split) -> Path:
    """Return the JSONL file of one split of CPython's language documentation, for fine-tuning."""
    return TINY / "text" / f"{split}.jsonl"
