"""A RoBERTa that transformers saved runs under a cap, learns to guess hidden tokens, and its adapter loads in PEFT."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import torch
from peft import PeftModel
from transformers import RobertaForMaskedLM, RobertaForSequenceClassification

from capped_runs import private_cache, run_toy
from memsim.errors import InputError, UsageError
from memsim.models.lora import LoraConfig
from memsim.schedules.optimizers import OptimizerConfig
from toy_roberta import SEQ_LEN, SPECIAL, roberta_config, save_tokenizer


@pytest.fixture(scope="module")
def checkpoint(disk: Path) -> Path:
    """A model with random weights, in bf16, in several shards, with its tokenizer."""
    directory = disk / "hf-roberta"
    torch.manual_seed(0)
    RobertaForMaskedLM(roberta_config()).to(torch.bfloat16).save_pretrained(directory, max_shard_size="60KB")
    save_tokenizer(directory / "tokenizer.json")
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
    used = outcome.result.tokenizer
    assert used is not None
    assert (used.begins, used.ends, used.every_window, used.between) == ((), ("<s>", "</s>"), True, "</s>")
    assert 0.0 < (outcome.result.evals[0].loss or 0.0) < 20.0


def test_what_cannot_be_trained_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--seq-len {SEQ_LEN + 1} is above the model's .*embeddings, {SEQ_LEN}"):
        run_toy(checkpoint, tmp_path / "out", seq_len=SEQ_LEN + 1)
    with pytest.raises(UsageError, match="--seq-len 2 is below 3: roberta puts a token at either end"):
        run_toy(checkpoint, tmp_path / "out", seq_len=2)
    with pytest.raises(UsageError, match="--bos never: hf-roberta has tokens of its own at either end of every window"):
        run_toy(checkpoint, tmp_path / "out", seq_len=SEQ_LEN, bos="never")
    RobertaForSequenceClassification(roberta_config()).save_pretrained(tmp_path / "classifier")
    with pytest.raises(UsageError, match="classifier classifies sequences: give it examples with --task, or use"):
        run_toy(tmp_path / "classifier", tmp_path / "out", seq_len=SEQ_LEN)


def test_a_tokenizer_without_a_mask_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    RobertaForMaskedLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model" / "tokenizer.json", SPECIAL)
    with pytest.raises(InputError, match="has no added token <mask> within the vocabulary of 384"):
        run_toy(tmp_path / "model", tmp_path / "out", seq_len=SEQ_LEN)
