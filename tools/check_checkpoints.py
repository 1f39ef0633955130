"""Hold memsim to transformers on public files: ``python tools/check_checkpoints.py --text T --smollm2 S --gemma G``.

Over 250 lines: a row after the other, with what they share.

Rows: ids of a mixed text; loss of each file before the first step of a capped run; loss of the packs that Gemma's file
gives; an MLX directory made of SmolLM2; twenty AdamW steps beside PEFT. transformers reads the same files
(``from_pretrained(directory, gguf_file=...)``). Printed: what is asked of each figure, and what was measured.

T is a long English text (WikiText-2's validation split), S ``SmolLM2-135M-Instruct.Q4_1.gguf``, G
``gemma-3-270m-q4_k_m.gguf``. ``--rows ids,loss`` measures some.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from memsim.data.tokenize import prepare_tokens
from memsim.data.tokenizer_choice import choose_tokenizer
from memsim.data.windows import Batches, TokenFile
from memsim.models.lora import LoraConfig
from memsim.runtime import RunConfig, RunProgress, run
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.cache import find_model
from memsim.weights.packing import pack_checkpoint
from memsim.weights.recipe import Recipe

SEQ_LEN, WINDOWS, STEPS, MIXED_BYTES = 256, 32, 20, 1_000_000
LORA = LoraConfig(rank=8, alpha=16.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        name: What was measured.
        asked: At most this.
        measured: In the same unit.
        note: The figures that it comes from.
    """

    name: str
    asked: float
    measured: float
    note: str

    @property
    def met(self) -> bool:
        """Whether it is within what is asked."""
        return self.measured <= self.asked


@dataclass(frozen=True, slots=True)
class Setting:
    """Where everything is."""

    smollm2: Path
    gemma: Path
    text: Path
    work: Path


def mixed_text(english: str) -> str:
    """Return 1 MB of English, Chinese, code, emoji, digits and runs of spaces, in lines; the same every time."""
    rng = random.Random(0)
    code = Path(random.__file__).read_text()

    def piece() -> str:
        kind, length = rng.randrange(6), rng.randrange(1, 200)
        if kind < 2:
            source = (english, code)[kind]
            start = rng.randrange(len(source) - length)
            return source[start : start + length]
        letters = (
            [chr(rng.randrange(0x4E00, 0x9FA6)) for _ in range(length)],
            [chr(rng.randrange(0x1F600, 0x1F650)) + rng.choice(["", "\u200d", "\ufe0f"]) for _ in range(length // 4)],
            [rng.choice("0123456789.,") for _ in range(length)],
            [rng.choice([" ", "  ", "\t", "\n", "\n\n", "a"]) for _ in range(length)],
        )
        return "".join(letters[kind - 2])

    pieces: list[str] = []
    size = 0
    while size < MIXED_BYTES:
        pieces.append(piece())
        size += len(pieces[-1].encode())
    return "".join(pieces)


def settings(model: Path, data: Path, out: Path, **changes: Any) -> RunConfig:
    """Return the settings of a capped run in f32."""
    common: dict[str, Any] = {"budget_bytes": 10**9, "model": str(model), "schedule": "tiled", "compute": "f32"}
    common |= {"data": data, "out": out, "lora": LORA, "seq_len": SEQ_LEN, "steps": 1}
    return RunConfig(**common | changes)


def tokens_of(model: Path, text: Path, setting: Setting) -> TokenFile:
    """Return the ids of a text as a run of ``model`` has them: the same function makes its file."""
    pack, name = find_model(str(model), lambda *_: None)
    chosen = choose_tokenizer(None, pack, name)
    path = setting.work / f"{text.stem}-{model.stem}.bin"
    vocab_size = pack.config.vocab_size
    found = prepare_tokens(text, chosen, path, vocab_size=vocab_size, seq_len=SEQ_LEN, eos_id=pack.eos_token_id)
    begins = found.tokenizer.begin_ids[0] if found.tokenizer.every_window else None
    return TokenFile(path, vocab_size, begins)


def first_loss(model: Path, setting: Setting, name: str) -> tuple[float, list[NDArray[np.int64]]]:
    """Return a run's loss before its first step, and the windows (ids and the label of the last) that it is of."""
    text = setting.work / "evaluated.txt"
    text.write_text(setting.text.read_text()[: 8 * SEQ_LEN * WINDOWS])
    out = setting.work / name
    evaluated: dict[str, Any] = {"eval_data": text, "eval_sequences": WINDOWS, "eval_first": True}
    result = run(settings(model, text, out, **evaluated), RunProgress()).result
    tokens = tokens_of(model, text, setting)
    pairs = (tokens.window(index, SEQ_LEN) for index in range(WINDOWS))
    return float(result.evals[0].loss or 0), [np.append(ids, labels[-1]).astype(np.int64) for ids, labels in pairs]


def reference(path: Path) -> Any:
    """Return transformers' model of a GGUF file, in f32."""
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    model: Any = load(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval()


def mean_loss(model: Any, windows: list[NDArray[np.int64]]) -> tuple[float, float]:
    """Return the mean loss over windows, and its standard error."""
    losses = []
    with torch.no_grad():
        for span in windows:
            ids = torch.from_numpy(span)
            losses.append(float(torch.nn.functional.cross_entropy(model(ids[None, :-1]).logits[0], ids[1:])))
    return float(np.mean(losses)), float(np.std(losses) / np.sqrt(len(losses)))


def ids_row(setting: Setting) -> list[Row]:
    """Return how many ids differ."""
    rows = []
    text = mixed_text(setting.text.read_text())
    path = setting.work / "mixed.txt"
    path.write_text(text, newline="")
    for name, model in (("SmolLM2", setting.smollm2), ("Gemma 3", setting.gemma)):
        ours = tokens_of(model, path, setting).tokens
        tokenizer = transformers.AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
        theirs = np.array(tokenizer(text).input_ids, np.uint32)
        wrong = int(np.sum(ours != theirs)) if len(ours) == len(theirs) else abs(len(ours) - len(theirs))
        rows.append(Row(f"{name}: ids of 1 MB of mixed text that differ", 0, wrong, f"{len(theirs):,} ids"))
    return rows


def loss_row(setting: Setting) -> list[Row]:
    """Return how far the loss of each file is from transformers'."""
    rows = []
    for name, model, asked in (("SmolLM2", setting.smollm2, 0.005), ("Gemma 3, --format source", setting.gemma, 0.02)):
        ours, windows = first_loss(model, setting, f"loss-{model.stem}")
        theirs, error = mean_loss(reference(model), windows)
        note = f"{ours:.4f} beside {theirs:.4f}, standard error of the mean {error:.3f}"
        rows.append(Row(f"{name}: loss before the first step, nats", asked, abs(ours - theirs), note))
    return rows


def packs_row(setting: Setting) -> list[Row]:
    """Return what Gemma's packs cost."""
    calibrating = setting.work / "calibrating.txt"
    calibrating.write_text(setting.text.read_text()[-8 * SEQ_LEN * 64 :])  # not what is evaluated
    rows, theirs, error = [], None, 0.0
    for name, asked, options in (
        ("affine, 8-bit embedding", 0.30, ["--format", "affine"]),
        ("symmetric, calibrated, 8-bit embedding", 0.40, ["--format", "symmetric", "--calibrate", str(calibrating)]),
    ):
        out = setting.work / f"pack-{options[1]}"
        command = [sys.executable, "-m", "memsim", "pack", str(setting.gemma), str(out), "--embedding-bits", "8"]
        status = os.spawnv(os.P_WAIT, sys.executable, [*command, *options])
        if status:
            raise SystemExit(f"packing ended with {status}")
        ours, windows = first_loss(out, setting, f"loss-{options[1]}")
        if theirs is None:
            theirs, error = mean_loss(reference(setting.gemma), windows)
        note = f"{ours:.4f} beside {theirs:.4f}, standard error of the mean {error:.3f}"
        rows.append(Row(f"Gemma 3, {name}: nats above its file", asked, ours - theirs, note))
    return rows


def mlx_row(setting: Setting) -> list[Row]:
    """Return how many weights of an MLX directory change in a pack, and its loss beside them."""
    from check_mlx import mlx_directory, wrong_weights

    directory, model = mlx_directory(reference(setting.smollm2), setting.smollm2, setting.work / "mlx")
    pack = pack_checkpoint(directory, setting.work / "mlx-pack", Recipe(), lambda *_: None).pack
    wrong, total = wrong_weights(pack, model)
    ours, windows = first_loss(setting.work / "mlx-pack", setting, "loss-mlx")
    theirs, _ = mean_loss(model, windows)
    return [
        Row("MLX 4 bits, groups of 64: weights that differ", 0, wrong, f"of {total:,}"),
        Row("MLX: loss, nats", 1e-4, abs(ours - theirs), f"{ours:.5f} beside {theirs:.5f}"),
    ]


def adamw_row(setting: Setting) -> list[Row]:
    """Return the largest difference of a step's loss from transformers + PEFT."""
    from check_training import peft_losses

    tokens = tokens_of(setting.smollm2, setting.text, setting)
    run(settings(setting.smollm2, setting.text, setting.work / "a", optimizer=OptimizerConfig(lr=0.0)), RunProgress())
    rate = OptimizerConfig(lr=1e-3)
    trained = settings(setting.smollm2, setting.text, setting.work / "b", optimizer=rate, steps=STEPS)
    ours = [step.loss for step in run(trained, RunProgress()).result.steps]
    theirs = peft_losses(reference(setting.smollm2), setting.work / "a", Batches(tokens, SEQ_LEN, 0), STEPS, rate.lr)
    apart = float(np.max(np.abs(np.array(ours) - np.array(theirs))))
    note = f"from {ours[0]:.4f} to {ours[-1]:.4f} beside {theirs[-1]:.4f}"
    return [Row("SmolLM2: 20 AdamW steps, largest difference of a loss from PEFT's", 1e-3, apart, note)]


ROWS: dict[str, Callable[[Setting], list[Row]]] = {
    "ids": ids_row, "loss": loss_row, "packs": packs_row, "mlx": mlx_row, "adamw": adamw_row
}  # fmt: skip


def table(rows: list[Row]) -> str:
    """Return figures as the documents show them."""
    lines = ["| figure | at most | measured | from |", "|---|---|---|---|"]
    lines += [f"| {row.name} | {row.asked:g} | {row.measured:.2g} | {row.note} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure the rows that are asked for, and exit with 1 when one misses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("text", "smollm2", "gemma"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a record instead, and measure nothing")
    asked = parser.parse_args()
    if asked.table:
        print(table([Row(**row) for row in json.loads(asked.table.read_text())]))
        return
    missing = [name for name in ("text", "smollm2", "gemma") if getattr(asked, name) is None]
    if missing:
        parser.error(f"--{missing[0]} is needed")
    found: list[Row] = []
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".check-") as work:
        setting = Setting(asked.smollm2.absolute(), asked.gemma.absolute(), asked.text, Path(work))
        for name in asked.rows.split(","):
            for row in ROWS[name](setting):
                found.append(row)
                print(f"{'ok  ' if row.met else 'MISS'} {row.measured:10.6f} of {row.asked:<6g} {row.name}: {row.note}")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")
    sys.exit(not all(row.met for row in found))


if __name__ == "__main__":
    main()
