"""Every scheme on RoBERTa, beside a classifier that is trained too or its masked head, against transformers and PEFT.

What a session trains is written as a run writes it and loaded as a user loads it, so that gradients, logits and the
exported files are compared at once.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from memsim.data.windows import IGNORED
from memsim.execution.session import Session
from memsim.execution.storage.arrays import SeparateArrays
from memsim.models.lora import LoraConfig
from memsim.models.scheme import Scheme, with_classifier
from memsim.models.schemes import Head, Norms, Prefix, Prompt
from memsim.planner.run_plan import RunPlan
from memsim.weights.pack import Pack
from memsim.weights.readers.hugging_face import hugging_face_name
from memsim.weights.synthetic import write_synthetic
from memsim.weights.trained import TRAINED_FILE, write_trained
from oracle import dequantized, model_for, parameter
from toy import gradient_names, plan_toy
from toy_families import family_config

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's remarks on adapters of an unnamed model

# Two f32 computations that sum in other orders, as in test_oracle.
TOLERANCE = 3e-5
SEQ_LEN, LABELS, P = 41, 3, 5
PAD, FIRST_WORD = 1, 3
LORA = LoraConfig(rank=4, alpha=8)
MASKED: tuple[Scheme, ...] = (Norms(), Prefix(P), Prompt(P))
CLASSIFIERS: tuple[Scheme, ...] = (
    replace(LORA, labels=LABELS),
    Norms(labels=LABELS),
    Prefix(P, labels=LABELS),
    Prompt(P, labels=LABELS),
    Head(LABELS),
)

Window = tuple[np.ndarray, np.ndarray]


def name_of(scheme: Scheme) -> str:
    return f"{scheme.name}-{'classifier' if scheme.labels else 'masked'}"


@dataclass(frozen=True)
class Windows:
    """Windows of unequal lengths, with a label for some tokens or one for all."""

    windows: list[Window]

    def batch(self, step: int) -> Window:
        return self.windows[step % len(self.windows)]

    def window(self, index: int, seq_len: int) -> Window:
        return self.windows[index]

    def n_windows(self, seq_len: int) -> int:
        return len(self.windows)


def windows(vocab_size: int, labels: int) -> Windows:
    generator, made = np.random.default_rng(7), []
    for count in (29, SEQ_LEN, 4):
        ids = generator.integers(FIRST_WORD, vocab_size, count, dtype=np.uint32)
        targets = np.where(generator.random(count) < 0.4, ids, IGNORED).astype(np.uint32)
        targets[0] = ids[0]
        made.append((ids, generator.integers(0, labels, 1, dtype=np.uint32) if labels else targets))
    return Windows(made)


def pack_of(directory: Path, classifies: bool) -> Pack:
    config = family_config("roberta")
    config = replace(config, num_labels=LABELS) if classifies else config
    return write_synthetic(directory / "pack", config, 32, 0, lambda *_: None)


def session_of(pack: Pack, disk: Path, scheme: Scheme, schedule: str, **changes: object) -> tuple[Session, RunPlan]:
    model = replace(pack, config=with_classifier(pack.config, scheme))
    plan = plan_toy(model, schedule, SEQ_LEN, scheme, **changes)
    arena = SeparateArrays(plan.train.program, keep_all=True)
    return Session(pack, scheme, plan.train, plan.evaluate, disk, seed=0, arena=arena), plan


def moved(session: Session) -> None:
    """Move all that is trained: gradients of LoRA's first values, with B = 0, would prove little."""
    generator = np.random.default_rng(5)
    for _, _, tensor in session.trainables():
        tensor += generator.normal(0, 0.2, tensor.shape).astype(np.float32)


class Loaded:
    """Transformers' model with what was written, in PEFT's way where the files are PEFT's."""

    def __init__(self, pack: Pack, scheme: Scheme, directory: Path) -> None:
        self.scheme, self.family = scheme, pack.config.family
        model = model_for(pack, scheme)
        self.in_peft = not (directory / TRAINED_FILE).exists()
        if self.in_peft:
            self.model: torch.nn.Module = PeftModel.from_pretrained(model, directory).eval()
            for name, tensor in self.model.named_parameters():
                trained = any(word in name for word in (".lora_", "modules_to_save", "prompt_encoder"))
                tensor.requires_grad_(trained)
        else:
            state = load_file(directory / TRAINED_FILE)
            assert model.load_state_dict(state, strict=False).unexpected_keys == []
            self.model = model.requires_grad_(False)
            for name in state:
                model.get_parameter(name).requires_grad_(True)

    def logits_and_loss(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = window
        padded = torch.full((1, SEQ_LEN), PAD)
        padded[0, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        targets = torch.from_numpy(np.where(labels == IGNORED, -100, labels.astype(np.int64)))
        logits = self.model(input_ids=padded, attention_mask=(padded != PAD).long()).logits[0]
        if self.scheme.labels:
            return logits[None], torch.nn.functional.cross_entropy(logits[None], targets)
        rows = logits[self.scheme.rows_before :][: len(ids)]
        return rows, torch.nn.functional.cross_entropy(rows, targets)

    def gradients(self, session: Session) -> dict[tuple[str, str], np.ndarray]:
        """Return the gradient of everything that a session trains, after a backward."""
        places = [(part, name) for part, name, _ in session.trainables()]
        found = {place: self._gradient(*place) for place in places if "prefix_" not in place[1]}
        prefixes = [place for place in places if "prefix_" in place[1]]
        if prefixes:
            columns = np.split(self._table().grad.numpy(), len(prefixes), axis=1)
            found |= dict(zip(prefixes, columns, strict=True))
        return found

    def _table(self) -> torch.nn.Parameter:
        return self.model.get_parameter("prompt_encoder.default.embedding.weight")

    def _gradient(self, part: str, name: str) -> np.ndarray:
        if name == "prompt.weight":
            return self._table().grad.numpy()
        if ".lora_" in name:
            return parameter(self.model, int(part.removeprefix("block_")), name).grad.numpy()
        theirs = hugging_face_name(part, name, self.family)
        if self.in_peft:
            theirs = theirs.replace("classifier.", "classifier.modules_to_save.default.")
            (theirs,) = [other for other, _ in self.model.named_parameters() if other.endswith(theirs)]
        return self.model.get_parameter(theirs).grad.numpy()


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("scheme", [*MASKED, *CLASSIFIERS], ids=name_of)
def test_gradients_and_logits_are_those_of_what_is_exported(tmp_path: Path, disk: Path, scheme: Scheme) -> None:
    pack = pack_of(tmp_path, classifies=False)
    for schedule in ("mebp", "tiled"):
        _check(pack, disk, scheme, schedule, tmp_path / schedule)


def _check(pack: Pack, disk: Path, scheme: Scheme, schedule: str, out: Path) -> None:
    given = windows(pack.config.vocab_size, scheme.labels)
    count = given.n_windows(SEQ_LEN)
    session, plan = session_of(pack, disk, scheme, schedule, accumulate=count, evaluate=True)
    moved(session)
    write_trained(out, session.trainables, pack.config, scheme, "toy")
    # The written files hold the values of before the step, which overwrites the session's own.
    reference = Loaded(pack, scheme, out)
    assert reference.in_peft == (scheme.name in ("lora", "prefix", "prompt"))
    results = [reference.logits_and_loss(window) for window in given.windows]

    evaluated = session.evaluate(given, SEQ_LEN, 1)
    assert evaluated.loss == pytest.approx(results[0][1].item(), rel=TOLERANCE)
    if schedule == "mebp":  # tiled has no logits of a vocabulary
        ours = session.array("head/f.logits", evaluation=True)[: len(results[0][0])]
        assert relative_error(ours, results[0][0].detach().numpy()) < TOLERANCE

    score = session.train_step(0, given, count)
    losses = [loss for _, loss in results]
    (sum(losses) / count).backward()
    weights = np.array([np.sum(labels != IGNORED) for _, labels in given.windows])
    assert score.loss == pytest.approx(np.dot(weights, [loss.item() for loss in losses]) / weights.sum(), rel=TOLERANCE)
    names = gradient_names(plan.train)
    for (part, name), expected in reference.gradients(session).items():
        ours = session.array(names[f"{part}/{name}"])
        # The softmax does not change when all scores of a query move by the same: k has no gradient along its bias.
        if np.linalg.norm(expected) > 1e-6:
            assert relative_error(ours, expected) < TOLERANCE, (schedule, part, name)
        else:
            assert np.abs(ours).max() < 1e-6


@pytest.mark.parametrize("scheme", CLASSIFIERS, ids=name_of)
def test_mebp_trains_to_the_bits_of_backprop(tmp_path: Path, disk: Path, scheme: Scheme) -> None:
    pack, ends = pack_of(tmp_path, classifies=False), []
    for schedule in ("mebp", "backprop"):
        session, _ = session_of(pack, disk, scheme, schedule)
        given = windows(pack.config.vocab_size, LABELS)
        losses = [session.train_step(step, given, 1).loss for step in range(3)]
        ends.append((losses, [tensor.tobytes() for _, _, tensor in session.trainables()]))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("classifies", [False, True])
def test_a_classifier_starts_as_the_model_s_own_or_small_and_random(
    tmp_path: Path, disk: Path, classifies: bool
) -> None:
    pack = pack_of(tmp_path, classifies)
    session, _ = session_of(pack, disk, Head(LABELS), "mebp")
    starts = {name: np.array(tensor) for _, name, tensor in session.trainables()}
    assert list(starts) == [
        f"classifier.{name}" for name in ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
    ]
    if classifies:
        own = dequantized(pack)
        assert all((values == own[name].numpy()).all() for name, values in starts.items())
    else:
        assert all((starts[name] == 0).all() for name in starts if name.endswith(".bias"))
        assert 0.018 < starts["classifier.dense.weight"].std() < 0.022
