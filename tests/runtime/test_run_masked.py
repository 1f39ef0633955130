"""A RoBERTa that transformers saved runs under a cap, learns to guess hidden tokens, and its adapter loads in PEFT."""

from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification

from capped_runs import private_cache, run_toy
from memsim.errors import InputError, UsageError
from memsim.models.lora import LoraConfig
from memsim.schedules.optimizers import OptimizerConfig

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
VOCAB, SEQ_LEN = 384, 66


def save_tokenizer(path: Path, special: list[str]) -> None:
    """Train a byte-level BPE tokenizer on CPython's documentation, with the special tokens of RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    tokenizer.save(str(path))


def config() -> RobertaConfig:
    return RobertaConfig(
        vocab_size=VOCAB,  # beyond the mask, as some checkpoints pad it
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=SEQ_LEN + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.2,  # large enough for the frozen head to give a token much weight
    )


@pytest.fixture(scope="module")
def checkpoint(disk: Path) -> Path:
    """A model with random weights, in bf16, in several shards, with its tokenizer."""
    directory = disk / "hf-roberta"
    torch.manual_seed(0)
    RobertaForMaskedLM(config()).to(torch.bfloat16).save_pretrained(directory, max_shard_size="60KB")
    save_tokenizer(directory / "tokenizer.json", [*SPECIAL, "<mask>"])
    return directory


@pytest.fixture(scope="module", autouse=True)
def own_cache(disk: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(private_cache(disk / "roberta-cache")))
        yield


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's remarks on adapters loaded onto an unnamed model
def test_it_learns_and_peft_loads_the_adapter(checkpoint: Path, tmp_path: Path) -> None:
    lora = LoraConfig(rank=4, target_modules=("query", "value", "dense"))
    optimizer = OptimizerConfig("adamw", lr=2e-2)
    outcome = run_toy(
        checkpoint, tmp_path / "out", seq_len=SEQ_LEN, steps=40, schedule="tiled", optimizer=optimizer, lora=lora
    )
    result = outcome.result
    assert (result.exit_reason, result.weights, result.model) == ("done", "packed", "hf-roberta")
    losses = [step.loss or 0.0 for step in result.steps]
    # Random weights know nothing, worse than a uniform guess; 40 steps find at least the common tokens.
    assert fmean(losses[-8:]) < fmean(losses[:8]) - 0.3
    model = PeftModel.from_pretrained(RobertaForMaskedLM.from_pretrained(checkpoint), tmp_path / "out")
    adapted = {name for name, _ in model.named_parameters() if "lora_B" in name}
    assert len(adapted) == 2 * 5  # query, value, and three of the name dense


@pytest.mark.parametrize("schedule", ["mebp", "backprop"])
def test_every_schedule_runs_it(checkpoint: Path, tmp_path: Path, schedule: str) -> None:
    outcome = run_toy(checkpoint, tmp_path / "out", seq_len=33, steps=2, schedule=schedule, eval_data=Path(__file__))
    assert outcome.result.exit_reason == "done"
    assert 0.0 < (outcome.result.evals[0].loss or 0.0) < 20.0


def test_what_cannot_be_trained_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--seq-len {SEQ_LEN + 1} is above the model's .*embeddings, {SEQ_LEN}"):
        run_toy(checkpoint, tmp_path / "out", seq_len=SEQ_LEN + 1)
    with pytest.raises(UsageError, match="--seq-len 2 is below 3: roberta puts a token at either end"):
        run_toy(checkpoint, tmp_path / "out", seq_len=2)
    RobertaForSequenceClassification(config()).save_pretrained(tmp_path / "classifier")
    with pytest.raises(UsageError, match="classifier classifies sequences, and memsim run trains on text"):
        run_toy(tmp_path / "classifier", tmp_path / "out", seq_len=SEQ_LEN)


def test_a_tokenizer_without_a_mask_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    RobertaForMaskedLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model" / "tokenizer.json", SPECIAL)
    with pytest.raises(InputError, match="has no added token <mask> within the vocabulary of 384"):
        run_toy(tmp_path / "model", tmp_path / "out", seq_len=SEQ_LEN)
