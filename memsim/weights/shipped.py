"""What memsim ships beside its code: a small trained model, and text that it has not seen.

``tools/pretrain_tiny.py`` made both; ``memsim/tiny/training.json`` says from what.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import memsim
from memsim.files import cache_dir, write_text
from memsim.tasks.agreement import agreement_examples

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)

TINY = Path(memsim.__file__).parent / "tiny"
PACKS = {"tiny": TINY / "pack"}
"""Presets whose weights are here."""

_MAKERS: Mapping[str, Callable[[Mapping[str, Sequence[str]]], dict[str, list[dict[str, str]]]]] = {
    "docs-agreement": agreement_examples
}
"""Tasks whose examples are made from the shipped text."""


def shipped_text(split: Split) -> Path:
    """Return the JSONL file of one split of CPython's language documentation, for fine-tuning."""
    return TINY / "text" / f"{split}.jsonl"


def has_examples(task: str) -> bool:
    """Return whether the examples of ``task`` are made from what memsim ships."""
    return task in _MAKERS


def shipped_examples(task: str, split: Split) -> Path:
    """Write the examples of one split of a task that ``has_examples`` to the cache, as JSONL, and return the file.

    Raises:
        InputError: The cache cannot be written.
    """
    documents: dict[str, list[str]] = {name: [json.loads(line)["text"] for line in _lines(name)] for name in SPLITS}
    path = cache_dir() / f"{task}-{split}.jsonl"
    write_text(path, "".join(f"{json.dumps(item)}\n" for item in _MAKERS[task](documents)[split]))
    return path


def _lines(split: Split) -> list[str]:
    return shipped_text(split).read_text(encoding="utf-8").splitlines()
