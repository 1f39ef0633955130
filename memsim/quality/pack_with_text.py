"""``memsim pack`` with a text: kernels are compiled and loaded for it, which a plain pack does not need."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from memsim.cap.processors import available_threads
from memsim.errors import UsageError
from memsim.execution.compile_cache import kernel_environment
from memsim.quality.sample_text import WINDOW_TOKENS, sample_windows
from memsim.runtime.prepare import prepare_kernels
from memsim.weights.pack import Pack
from memsim.weights.packing import PackReport, pack_opened
from memsim.weights.readers.source import Checkpoint
from memsim.weights.recipe import Recipe

Stage = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean losses, in nats a token.

    Attributes:
        pack: Of the pack.
        source: Of the checkpoint as its files have it, in float32.
        n_windows: Windows of the text.
        window_tokens: Tokens in each.
    """

    pack: float
    source: float
    n_windows: int
    window_tokens: int


def pack_calibrated(
    checkpoint: Checkpoint, out: Path, recipe: Recipe, text: Path, progress: Callable[[str, int, int], None],
    stage: Stage,
) -> PackReport:  # fmt: skip
    """Pack a checkpoint with rounding that compensates its errors on ``text``.

    Raises:
        UsageError: The recipe keeps what the source has, or the model is no causal language model.
        InputError: As ``pack_checkpoint``, or the text cannot be used.
    """
    if recipe.chosen(checkpoint) == "source":
        raise UsageError("--calibrate rounds anew, and --format source keeps what there is; add --format affine")
    # Making a tokenizer.json of a GGUF vocabulary takes 300 MB for a second: once, and before there is anything else.
    checkpoint = replace(checkpoint, tokenizer=cache(checkpoint.tokenizer))
    windows = sample_windows(text, checkpoint, "--calibrate")
    threads = _load_kernels(stage)
    from memsim.quality.calibrated_packing import TextCalibration

    rounding = TextCalibration(checkpoint, recipe.formats(checkpoint), windows, threads)
    return pack_opened(checkpoint, out, recipe, progress, rounding)


def measure_losses(checkpoint: Checkpoint, pack: Pack, text: Path, stage: Stage) -> Losses:
    """Return the loss of a pack on ``text``, and of the checkpoint that it was made from.

    Raises:
        UsageError: The model is no causal language model.
        InputError: The text cannot be used.
    """
    windows = sample_windows(text, checkpoint, "--measure")
    threads = _load_kernels(stage)
    from memsim.quality.calibrated_packing import loss_of_checkpoint, loss_of_pack

    stage("measuring the loss of the pack")
    packed = loss_of_pack(pack, windows, threads)
    stage("measuring the loss of the source")
    source = loss_of_checkpoint(checkpoint, pack.formats, windows, threads)
    return Losses(packed, source, len(windows), WINDOW_TOKENS)


def _load_kernels(stage: Stage) -> int:
    """Have the kernels compiled by another process, and let this one load them; return the threads."""
    threads = available_threads()
    prepare_kernels(threads, stage)
    os.environ.update(kernel_environment())
    return threads
