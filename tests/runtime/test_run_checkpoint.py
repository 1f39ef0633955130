"""A directory that transformers saved packs, runs under a cap, and learns from real text."""

import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

from capped_runs import LORA, private_cache, run_toy
from memsim.data.tokenize import prepare_tokens
from memsim.runtime.outcome import RunOutcome
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack import open_pack
from memsim.weights.packing import pack_checkpoint
from toy import in_file

SEQ_LEN, STEPS, VOCAB = 64, 30, 384


def save_tokenizer(path: Path) -> None:
    """Train a byte-level BPE tokenizer on CPython's documentation, as Qwen's is built."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def checkpoint(disk: Path) -> Path:
    """A model with random weights, in bf16, in several shards, with its tokenizer."""
    directory = disk / "hf-model"
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,  # large enough for the frozen head to give a token much weight
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory, max_shard_size="60KB")
    save_tokenizer(directory / "tokenizer.json")
    return directory


@pytest.fixture(scope="module", autouse=True)
def own_cache(disk: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(private_cache(disk / "hf-cache")))
        yield disk / "hf-cache"


@pytest.fixture(scope="module")
def trained(checkpoint: Path, disk: Path) -> RunOutcome:
    return run_checkpoint(checkpoint, disk / "hf-out", STEPS)


def run_checkpoint(model: Path, out: Path, steps: int) -> RunOutcome:
    return run_toy(model, out, seq_len=SEQ_LEN, steps=steps, optimizer=OptimizerConfig("adamw", lr=1e-2))


def test_the_fixture_is_what_the_issue_names(checkpoint: Path) -> None:
    assert len(list(checkpoint.glob("model-*-of-*.safetensors"))) > 2
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert json.loads((checkpoint / "config.json").read_text())["dtype"] == "bfloat16"


def test_its_loss_falls_on_real_text(trained: RunOutcome) -> None:
    result = trained.result
    assert (result.exit_reason, result.weights, result.model) == ("done", "packed", "hf-model")
    losses = [step.loss or 0.0 for step in result.steps]
    assert len(losses) == STEPS
    # Random weights know nothing, worse than a uniform guess; 30 steps find at least the common tokens.
    assert fmean(losses[-5:]) < fmean(losses[:5]) - 0.5
    assert fmean(step.accuracy or 0.0 for step in result.steps[-5:]) > 5 / VOCAB


def test_the_text_was_tokenized_with_the_models_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    info = prepare_tokens(
        None, in_file(checkpoint / "tokenizer.json"), tmp_path / "t", vocab_size=VOCAB, seq_len=SEQ_LEN
    )
    assert info.tokenizer.name == "tokenizer.json"
    ids = np.fromfile(tmp_path / "t", dtype="<u4")
    assert ids.max() > 256  # merged tokens, which a byte-level fallback does not have


def test_packing_it_first_gives_the_same_losses(checkpoint: Path, trained: RunOutcome, tmp_path: Path) -> None:
    report = pack_checkpoint(checkpoint, tmp_path / "packed", 32, lambda *_: None)
    assert 0.05 < report.relative_error < 0.12  # INT4 in groups of 32 on normal weights: some 9 %
    assert open_pack(tmp_path / "packed").tokenizer is not None
    again = run_checkpoint(tmp_path / "packed", tmp_path / "out", 3)
    assert [step.loss for step in again.result.steps] == [step.loss for step in trained.result.steps[:3]]
    assert again.result.lora_rank == LORA.rank


def test_its_pack_is_found_in_a_relative_cache(
    checkpoint: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").symlink_to(own_cache)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMSIM_CACHE", "cache")  # the worker runs in another directory
    assert run_checkpoint(checkpoint, Path("out"), 1).result.exit_reason == "done"
