"""Train the model that memsim ships as ``--model tiny``: ``nice python tools/pretrain_tiny.py OUT`` (extra ``torch``).

Over 250 lines: a recipe, which is read from top to bottom.

A byte-level Qwen2-style model learns the docstrings and comments of CPython's standard library; CPython's language
documentation (``pydoc_data.topics``) is kept from it and becomes the text to fine-tune on. From half of the steps on
the forward pass sees the weights as the pack will hold them, so that the checkpoint loses nothing when it is packed.

A step takes one thread: on a machine with other work, two that wait for each other are several times slower.

OUT, which must not exist, gets ``checkpoint`` (a Hugging Face directory), ``pack``, ``text`` (the fine-tuning text) and
``training.json`` (the loss curve and where everything comes from). ``memsim/tiny`` holds the last three.
"""

import argparse
import ast
import hashlib
import io
import json
import math
import platform
import sys
import sysconfig
import time
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from memsim.cli.progress import bytes_progress
from memsim.errors import InputError, MemsimError
from memsim.files import write_text
from memsim.models.parts import GROUP_SIZES
from memsim.weights.pack import BYTES
from memsim.weights.packing import pack_opened
from memsim.weights.readers.formats import open_source
from memsim.weights.tokenizers.tokenizer_json import FoundTokenizer

EOS_ID = 0
"""Between documents: a byte that no text holds."""

SPLITS = {"validation": 10, "test": 20, "train": 100}
"""Split -> the percentile of a document's hash below which it belongs there; the first that is large enough."""

CONFIG: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
    "pad_token_id": None,
}

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the trained weights, the text aside."""

    seed: int = 0
    threads: int = 1
    steps: int = 2_000
    quantised_from: float = 0.5
    batch: int = 16
    seq_len: int = 256
    lr: float = 3e-3
    final_lr: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.1
    eval_every: int = 100


def split_of(name: str) -> str:
    """Return the split of the document ``name``: by its hash, so that no other document moves it."""
    percentile = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return next(split for split, end in SPLITS.items() if percentile < end)


def library_texts() -> dict[str, str]:
    """Return file name -> its docstrings and comments, for each module of the standard library without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"} & set(name.split("/")):
            texts[name] = "\n\n".join(_prose(path.read_text(encoding="utf-8", errors="ignore")))
    return {name: text for name, text in texts.items() if text}


def _prose(source: str) -> Iterator[str]:
    """Yield the docstrings of a module, each under the line that it documents, and its blocks of comments."""
    lines = source.splitlines()
    try:
        tree, tokens = ast.parse(source), list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text if isinstance(node, ast.Module) else f"{lines[node.lineno - 1].strip()}\n    {text}"
    block: list[str] = []
    last = -1
    for token in tokens:
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield "\n".join(block)
                block = []
            block.append(token.string)
            last = token.start[0]
    if block:
        yield "\n".join(block)


def topic_texts() -> dict[str, str]:
    """Return name -> text of the documentation that every Python carries; of equal texts, the first name stays."""
    from pydoc_data.topics import topics

    names = {text: name for name, text in sorted(topics.items(), reverse=True)}
    return {name: text for text, name in names.items()}


def documents(texts: dict[str, str], split: str) -> list[str]:
    """Return the documents of a split, in the order of their names."""
    return [text.replace("\0", "") for name, text in sorted(texts.items()) if split_of(name) == split]


def tokens_of(texts: list[str]) -> Bytes:
    """Return the texts as bytes, an ``EOS_ID`` before each."""
    return np.frombuffer("".join(f"\0{text}" for text in texts).encode(), dtype=np.uint8)


def quantised(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix [N, K] on levels -7...7 in groups of 32 columns, which a pack takes over without loss."""
    groups = weight.reshape(len(weight), -1, GROUP_SIZES[0])
    scales = (groups.abs().amax(2, keepdim=True) / 7).half().float()
    return (groups / scales.clamp(min=1e-8)).round().clamp(-7, 7).mul(scales).reshape(weight.shape)


class Trainer:
    """The model, its optimizer, and its full-precision weights while the pack's are in their place."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**CONFIG))
        self.matrices = [weight for weight in self.model.parameters() if weight.ndim == 2]
        vectors = [weight for weight in self.model.parameters() if weight.ndim == 1]
        groups: list[dict[str, Any]] = [
            {"params": self.matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def lr(self, step: int) -> float:
        """Return the learning rate of ``step`` (from 0): a linear warm-up, then a cosine."""
        recipe = self.recipe
        if step < recipe.warmup:
            return recipe.lr * (step + 1) / recipe.warmup
        share = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return recipe.final_lr + (recipe.lr - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * share))

    @torch.no_grad()
    def quantise(self) -> list[torch.Tensor]:
        """Put the weights of the pack in place; return those that were there."""
        masters = [weight.clone() for weight in self.matrices]
        self.restore([quantised(weight) for weight in self.matrices])
        return masters

    @torch.no_grad()
    def restore(self, masters: list[torch.Tensor]) -> None:
        """Put matrices in place."""
        for weight, master in zip(self.matrices, masters, strict=True):
            weight.copy_(master)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy in nats of ids [B, T + 1], each predicted from those before it."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(ids[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    def step(self, step: int, ids: torch.Tensor) -> float:
        """Train on one batch and return its loss; gradients of packed weights go to the masters as they are."""
        masters = self.quantise() if step >= self.recipe.quantised_from * self.recipe.steps else None
        loss = self.loss(ids)
        loss.backward()  # type: ignore[no-untyped-call]
        if masters is not None:
            self.restore(masters)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, tokens: Bytes, windows: int = 32) -> float:
        """Return the loss of the packed weights over windows spread evenly over ``tokens``."""
        length, masters = self.recipe.seq_len, self.quantise()
        starts = np.linspace(0, len(tokens) - length - 1, windows, dtype=np.int64)
        loss = self.loss(_windows(tokens, starts, length)).item()
        self.restore(masters)
        return loss


def _windows(tokens: Bytes, starts: NDArray[np.int64], length: int) -> torch.Tensor:
    return torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64))


def train(recipe: Recipe, texts: dict[str, Bytes], say: Callable[[str], None]) -> tuple[Trainer, list[dict[str, Any]]]:
    """Train on ``texts["train"]``; return the trainer and the curve of losses on every text."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True)
    trainer, curve, losses = Trainer(recipe), [], []
    order, start = np.random.default_rng(recipe.seed), time.monotonic()
    for step in range(recipe.steps):
        starts = order.integers(0, len(texts["train"]) - recipe.seq_len, recipe.batch)
        losses.append(trainer.step(step, _windows(texts["train"], starts, recipe.seq_len)))
        if (step + 1) % recipe.eval_every == 0 or step + 1 == recipe.steps:
            held_out = {name: trainer.evaluate(text) for name, text in texts.items() if name != "train"}
            means = {"train": float(np.mean(losses))} | held_out
            curve.append({"step": step + 1} | {name: round(loss, 4) for name, loss in means.items()})
            losses.clear()
            say(f"{time.monotonic() - start:6.0f} s  {curve[-1]}")
    return trainer, curve


def write_texts(directory: Path, texts: dict[str, str]) -> None:
    """Write the fine-tuning text, a JSONL file for each split, and the licence that it comes under."""
    directory.mkdir()
    licence = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    write_text(directory / licence.name, licence.read_text(encoding="utf-8"))
    for split in SPLITS:
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in documents(texts, split))
        write_text(directory / f"{split}.jsonl", "".join(f"{line}\n" for line in lines))


def main() -> None:
    """Train, pack and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="optimizer steps (%(default)s)")
    arguments = parser.parse_args()
    recipe, out = Recipe(steps=arguments.steps), arguments.out
    if out.exists():
        raise InputError(f"{out} exists; choose another directory")
    library, topics = library_texts(), topic_texts()
    texts = {split: tokens_of(documents(library, split)) for split in ("train", "validation", "test")}
    texts["topics"] = tokens_of(documents(topics, "validation"))
    out.mkdir(parents=True)
    start = time.monotonic()
    trainer, curve = train(recipe, texts, lambda line: print(line, file=sys.stderr, flush=True))
    seconds = time.monotonic() - start
    trainer.quantise()
    trainer.model.save_pretrained(out / "checkpoint")
    with bytes_progress("packing") as progress:
        checkpoint = replace(open_source(out / "checkpoint"), tokenizer=lambda: FoundTokenizer(None, BYTES))
        report = pack_opened(checkpoint, out / "pack", GROUP_SIZES[0], progress)
    write_texts(out / "text", topics)
    record = {
        "command": "python tools/pretrain_tiny.py OUT",
        "recipe": asdict(recipe),
        "config": CONFIG,
        "text": {
            "python": platform.python_version(),
            "pretraining": "docstrings and comments of the standard library's modules, tests aside",
            "fine_tuning": "pydoc_data.topics, of which the model saw nothing",
            "bytes": {name: len(text) for name, text in texts.items()},
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "seconds": round(seconds),
        "model_hash": report.pack.model_hash,
        "packing_error": report.relative_error,
        "loss_in_nats_per_byte": curve,
    }
    write_text(out / "training.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except MemsimError as error:
        sys.exit(f"pretrain_tiny: {error}")
