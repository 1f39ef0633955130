"""RoBERTa learns a task under a cap: by its classifier, which PEFT loads, or by label words at the mask."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import RobertaForMaskedLM, RobertaForSequenceClassification

from capped_runs import ADAPTER_FILES, RUN_FILES, files_in, private_cache, run_toy
from memsim.errors import UsageError
from memsim.models.lora import LoraConfig
from memsim.models.schemes import Head
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.replay_seeds import replay_seeds
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.cache import find_model
from memsim.weights.trained import TRAINED_FILE
from oracle import model_for
from toy_roberta import roberta_config, save_tokenizer

FILMS = [
    {"sentence": "a gripping and moving film", "label": 1},
    {"sentence": "tedious, clumsy and far too long", "label": 0},
    {"sentence": "a warm and clever story", "label": 1},
    {"sentence": "dull from first to last", "label": 0},
]
COPA = [
    {"premise": "It rained.", "choice1": "It got wet.", "choice2": "The sun set.", "question": "effect", "label": 0}
]
LORA = LoraConfig(rank=4, alpha=8)
SEQ_LEN = 40


@pytest.fixture(scope="module", autouse=True)
def own_cache(disk: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(private_cache(disk / "roberta-task-cache")))
        yield


@pytest.fixture(scope="module")
def checkpoint(disk: Path) -> Path:
    directory = disk / "hf-roberta-task"
    torch.manual_seed(0)
    RobertaForMaskedLM(roberta_config()).save_pretrained(directory)
    save_tokenizer(directory / "tokenizer.json")
    return directory


@pytest.fixture(scope="module")
def classifier(disk: Path) -> Path:
    directory = disk / "hf-roberta-classifier"
    torch.manual_seed(0)
    RobertaForSequenceClassification(roberta_config()).save_pretrained(directory)
    save_tokenizer(directory / "tokenizer.json", ["<s>", "<pad>", "</s>", "<unk>"])  # which needs no mask
    return directory


def run_task(model: Path, directory: Path, **changes: object) -> RunOutcome:
    data = directory / "examples.jsonl"
    data.write_text("".join(json.dumps(film) + "\n" for film in FILMS))
    settings = {"task": "sst2", "data": data, "eval_data": data, "seq_len": SEQ_LEN, "compute": "f32"}
    if changes.get("scheme", "lora") == "lora":
        settings["lora"] = LORA
    settings |= {"optimizer": OptimizerConfig("adamw", lr=1e-2)} | changes
    return run_toy(model, directory / "out", **settings)


def mean_loss(model: torch.nn.Module, tokenizer: Tokenizer) -> float:
    """Return transformers' loss over the films, each between ``<s>`` and ``</s>`` and padded."""
    losses = []
    for film in FILMS:
        ids = [0, *tokenizer.encode(f"{film['sentence']} It was", add_special_tokens=False).ids, 2]
        padded = torch.tensor([ids + [1] * (SEQ_LEN - len(ids))])
        with torch.no_grad():
            out = model(padded, attention_mask=(padded != 1).long(), labels=torch.tensor([film["label"]]))
        losses.append(out.loss.item())
    return float(np.mean(losses))


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's remarks on adapters loaded onto an unnamed model
@pytest.mark.parametrize("model", ["checkpoint", "classifier"])
def test_it_learns_its_examples_and_peft_loads_what_it_learned(
    request: pytest.FixtureRequest, tmp_path: Path, model: str
) -> None:
    path = request.getfixturevalue(model)
    outcome = run_task(path, tmp_path, steps=32)
    result = outcome.result
    assert (result.exit_reason, result.task, result.scheme, outcome.labels) == ("done", "sst2", "lora", 2)
    assert result.evals[-1].accuracy == 1.0
    assert files_in(tmp_path / "out") == RUN_FILES | ADAPTER_FILES
    pack, _ = find_model(str(path), lambda *_: None)
    reference = model_for(pack, Head(2))
    loaded = PeftModel.from_pretrained(reference, tmp_path / "out").eval()
    # Two f32 computations that sum in other orders; losses near 0 differ by more of themselves.
    loss = mean_loss(loaded, Tokenizer.from_file(str(path / "tokenizer.json")))
    assert result.evals[-1].loss == pytest.approx(loss, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("changes", [{"scheme": "head"}, {"scheme": "norms"}, {"schedule": "mezo"}], ids=str)
def test_other_schemes_and_schedules_train_a_classifier(
    checkpoint: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    outcome = run_task(checkpoint, tmp_path, steps=2, **changes)
    assert (outcome.result.exit_reason, outcome.labels) == ("done", 2)
    assert outcome.result.evals[0].accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)
    name = "adapter_model.safetensors" if "schedule" in changes else TRAINED_FILE
    assert (tmp_path / "out" / name).is_file()
    if "schedule" in changes:
        replay_seeds(tmp_path / "out" / "seeds.jsonl", str(checkpoint), tmp_path / "again", lambda text: None)
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_label_words_are_guessed_at_the_mask(checkpoint: Path, tmp_path: Path) -> None:
    outcome = run_task(checkpoint, tmp_path, steps=40, classifier=False, lora=LoraConfig(rank=8))
    assert (outcome.result.exit_reason, outcome.labels) == ("done", 0)
    losses = [step.loss or 0.0 for step in outcome.result.steps]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.3
    assert outcome.result.evals[-1].accuracy in (0.25, 0.5, 0.75, 1.0)


def test_what_cannot_work_is_refused(checkpoint: Path, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "copa.jsonl").write_text(json.dumps(COPA) + "\n")
    copa = {"task": "copa", "data": tmp_path / "copa.jsonl", "eval_data": None}
    with pytest.raises(UsageError, match="a model that classifies needs classes, but every example"):
        run_task(classifier, tmp_path, **copa)
    with pytest.raises(UsageError, match="--classifier needs classes, but every example of this task brings"):
        run_task(checkpoint, tmp_path, classifier=True, **copa)
    with pytest.raises(UsageError, match="--label-words needs a vocabulary to choose from, but this model has a class"):
        run_task(classifier, tmp_path, classifier=False)
    with pytest.raises(UsageError, match="--label-words needs --task"):
        run_toy(checkpoint, tmp_path / "out", classifier=False)
    three = tmp_path / "three.toml"
    three.write_text(
        'schema = "memsim.task/1"\ntitle = "t"\nkind = "classification"\nlabel = "label"\nlabels = ["0", "1", "2"]\n'
        'options = ["a", "b", "c"]\nscore = "sum"\n[fields]\nsentence = "text"\n'
        '[template]\nprompt = "{sentence}"\nanswer = " {option}"\n'
        '[plain]\nprompt = "{sentence}"\nanswer = " {option}"\n'
    )
    with pytest.raises(UsageError, match="the model tells 2 classes apart, but the task has 3"):
        run_task(classifier, tmp_path, task=str(three))
    with pytest.raises(UsageError, match="--schedule forward-grad trains LoRA adapters only; with a classifier"):
        run_task(classifier, tmp_path, schedule="forward-grad")
