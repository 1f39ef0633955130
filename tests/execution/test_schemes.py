"""Every scheme against torch autograd on transformers' own model, and through PEFT where PEFT has it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from memsim.data.examples import ExampleFile
from memsim.data.windows import IGNORED
from memsim.execution.session import Session
from memsim.execution.storage.arrays import SeparateArrays
from memsim.models.lora import LoraConfig
from memsim.models.scheme import Scheme
from memsim.models.schemes import Head, Norms, Prefix, Prompt
from memsim.weights.pack import Pack
from memsim.weights.readers.hugging_face import hugging_face_name
from memsim.weights.synthetic import write_synthetic
from memsim.weights.trained import TRAINED_FILE, write_trained
from oracle import dequantized, reference_config, reference_model
from toy import gradient_names, plan_toy, toy_config
from toy_families import FAMILY_CHANGES, family_config

# Two f32 computations that sum in other orders, as in test_oracle.
TOLERANCE = 3e-5
SEQ_LEN = 21  # beyond every window, with the prefix and without it
P = 5
LM_SCHEMES = (Norms(), Prefix(P), Prompt(P))
SCHEMES = (*LM_SCHEMES, Head(3))
FAMILIES = ("toy", *(name for name in FAMILY_CHANGES if family_config(name).family.causal))

Trained = dict[tuple[str, str], np.ndarray]
Window = tuple[np.ndarray, np.ndarray]


class Windows:
    """Seeded windows in memory; of a classifier, with one label on a token that is not the last."""

    def __init__(self, vocab_size: int, scheme: Scheme, count: int = 3, seq_len: int = SEQ_LEN) -> None:
        generator = np.random.default_rng(7)
        self.windows: list[Window] = []
        for _ in range(count):
            ids = generator.integers(0, vocab_size, seq_len, dtype=np.uint32)
            labels = generator.integers(0, vocab_size, seq_len, dtype=np.uint32)
            labels[seq_len // 2] = IGNORED
            if isinstance(scheme, Head):
                labels[:] = IGNORED
                labels[seq_len - 4] = generator.integers(0, scheme.labels)
            self.windows.append((ids, labels))

    def batch(self, step: int) -> Window:
        return self.windows[step % len(self.windows)]

    def window(self, index: int, seq_len: int) -> Window:
        return self.windows[index]

    def n_windows(self, seq_len: int) -> int:
        return len(self.windows)


def _pack(tmp_path: Path, name: str) -> Pack:
    config = toy_config() if name == "toy" else family_config(name)
    return write_synthetic(tmp_path / "pack", config, 32, 0, lambda *_: None)


def _session(pack: Pack, disk: Path, scheme: Scheme, schedule: str, seq_len: int = SEQ_LEN, **changes: object):  # type: ignore[no-untyped-def]
    plan = plan_toy(pack, schedule, seq_len, scheme, **changes)
    arena = SeparateArrays(plan.train.program, keep_all=True)
    session = Session(pack, scheme, plan.train, plan.evaluate, disk, seed=0, arena=arena)
    generator = np.random.default_rng(5)
    for _, _, tensor in session.trainables():
        tensor += generator.normal(0, 0.3, tensor.shape).astype(np.float32)
    return session, plan


def _trained(session: Session) -> Trained:
    return {(part, name): np.array(tensor) for part, name, tensor in session.trainables()}


class Reference:
    """Transformers' model with trainable parameters of the given values."""

    def __init__(self, pack: Pack, scheme: Scheme, trained: Trained) -> None:
        self.scheme, self.pack = scheme, pack
        if isinstance(scheme, Head):
            self.model: torch.nn.Module = classifier(pack, scheme.labels)
            self.places = {("head", "score.weight"): "score.weight"}
        elif isinstance(scheme, Norms):
            self.model = reference_model(pack)
            self.places = {place: hugging_face_name(*place, pack.config.family) for place in trained}
        else:
            kind = PromptTuningConfig if isinstance(scheme, Prompt) else PrefixTuningConfig
            settings = kind(num_virtual_tokens=scheme.virtual_tokens, task_type="CAUSAL_LM")
            self.model = get_peft_model(reference_model(pack), settings).eval()
            self.places = {}
        self.model.requires_grad_(False)
        self.parameters = {}
        if not self.places:
            self.table = self.model.prompt_encoder.default.embedding.weight
            self.table.data.copy_(torch.from_numpy(np.concatenate(list(trained.values()), axis=1)))
            self.table.requires_grad_(True)
        for (part, name), theirs in self.places.items():
            parameter = self.model.get_parameter(theirs)
            parameter.data.copy_(torch.from_numpy(trained[part, name] - self.offset(name)))
            parameter.requires_grad_(True)

    def offset(self, name: str) -> np.float32:
        """Return what Gemma's norms add to their weights."""
        return np.float32(self.pack.config.model_type == "gemma3_text" and name.endswith("norm.weight"))

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        """Return the logits of the sequence's own tokens."""
        logits = self.model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
        return logits[self.scheme.rows_before :]

    def loss(self, ids: np.ndarray, labels: np.ndarray) -> torch.Tensor:
        targets = torch.from_numpy(np.where(labels == IGNORED, -100, labels.astype(np.int64)))
        if not isinstance(self.scheme, Head):
            return torch.nn.functional.cross_entropy(self.logits(ids), targets)
        # The classifier reads the last token that is no padding: all after the labelled one are.
        last = int(np.argmax(labels != IGNORED))
        padded = torch.from_numpy(ids.astype(np.int64))[None]
        padded[0, last + 1 :] = self.model.config.pad_token_id
        mask = (torch.arange(len(ids)) <= last).long()[None]
        logits = self.model(padded, attention_mask=mask).logits
        return torch.nn.functional.cross_entropy(logits, targets[last : last + 1])

    def gradients(self, trained: Trained) -> Trained:
        if self.places:
            return {place: self.model.get_parameter(theirs).grad.numpy() for place, theirs in self.places.items()}
        widths = np.cumsum([values.shape[1] for values in trained.values()])[:-1]
        return dict(zip(trained, np.split(self.table.grad.numpy(), widths, axis=1), strict=True))


def classifier(pack: Pack, labels: int) -> torch.nn.Module:
    config = reference_config(pack.config)
    config.num_labels, config.pad_token_id = labels, 0
    model = AutoModelForSequenceClassification.from_config(config).float()
    missing, unexpected = model.load_state_dict(dequantized(pack), strict=False)
    assert missing == ["score.weight"]
    assert set(unexpected) <= {"lm_head.weight"}
    return model.eval()


def _relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_gradients_equal_autograd(tmp_path: Path, disk: Path, name: str, scheme: Scheme) -> None:
    pack = _pack(tmp_path, name)
    for schedule in ("mebp", "tiled"):
        _check(pack, disk, scheme, schedule)


def _check(pack: Pack, disk: Path, scheme: Scheme, schedule: str, seq_len: int = SEQ_LEN, accumulate: int = 1) -> None:
    session, plan = _session(pack, disk, scheme, schedule, seq_len, accumulate=accumulate)
    before = _trained(session)
    windows = Windows(pack.config.vocab_size, scheme, seq_len=seq_len)
    score = session.train_step(0, windows, accumulate)
    reference = Reference(pack, scheme, before)
    losses = [reference.loss(*windows.batch(micro)) for micro in range(accumulate)]
    (sum(losses) / accumulate).backward()
    names = gradient_names(plan.train)
    assert {f"{part}/{tensor}" for part, tensor in before} == set(names)
    for (part, tensor), expected in reference.gradients(before).items():
        ours = session.array(names[f"{part}/{tensor}"])
        # The softmax does not change when all scores of a query move by the same: k has no gradient along its bias.
        if np.linalg.norm(expected) > 1e-6:
            assert _relative_error(ours, expected) < TOLERANCE, (schedule, part, tensor)
        else:
            assert np.abs(ours).max() < 1e-6
    assert score.loss == pytest.approx(sum(loss.item() for loss in losses) / accumulate, rel=TOLERANCE)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_micro_batches_add_up_and_the_mlp_runs_in_tiles(tmp_path: Path, disk: Path, scheme: Scheme) -> None:
    # 140 rows are more than one tile of 128, for the sequence alone as well as after virtual tokens.
    _check(_pack(tmp_path, "opt"), disk, scheme, "tiled", seq_len=140, accumulate=2)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_mebp_trains_to_the_bits_of_backprop(disk: Path, toy_pack: Pack, scheme: Scheme) -> None:
    ends = []
    for schedule in ("mebp", "backprop"):
        session, _ = _session(toy_pack, disk, scheme, schedule)
        windows = Windows(toy_pack.config.vocab_size, scheme)
        start = _trained(session)
        losses = [session.train_step(step, windows, 1).loss for step in range(3)]
        end = _trained(session)
        assert all((end[key] != start[key]).any() for key in start)
        ends.append((losses, {key: values.tobytes() for key, values in end.items()}))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("schedule", ["mebp", "tiled"])
def test_norms_start_as_the_model_itself(disk: Path, toy_pack: Pack, schedule: str) -> None:
    windows = Windows(toy_pack.config.vocab_size, Norms())
    scores = []
    for scheme in (Norms(), LoraConfig()):  # B is zero at first
        plan = plan_toy(toy_pack, schedule, SEQ_LEN, scheme)
        session = Session(toy_pack, scheme, plan.train, None, disk, seed=0)
        scores.append(session.train_step(0, windows, 1))
    assert scores[0] == scores[1]


@pytest.mark.parametrize("name", ["toy", "gemma3_text"])
def test_a_prompt_starts_as_embeddings_of_the_vocabulary(tmp_path: Path, disk: Path, name: str) -> None:
    pack, scheme = _pack(tmp_path, name), Prompt(6)
    plan = plan_toy(pack, "tiled", SEQ_LEN, scheme)
    starts = []
    for seed in (0, 0, 1):
        session = Session(pack, scheme, plan.train, None, disk, seed)
        starts.append(_trained(session)["embed", "prompt.weight"])
    table = dequantized(pack)["model.embed_tokens.weight"].numpy() * np.float32(pack.config.embedding_scale)
    rows = [int(np.flatnonzero((table == row).all(axis=1))[0]) for row in starts[0]]
    assert len(set(rows)) > 1
    assert (starts[0] == starts[1]).all()
    assert (starts[0] != starts[2]).any()


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's remarks on adapters loaded onto an unnamed model
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_what_was_trained_loads_elsewhere_and_gives_the_same_logits(
    tmp_path: Path, disk: Path, name: str, scheme: Scheme
) -> None:
    pack = _pack(tmp_path, name)
    schedule = "tiled" if isinstance(scheme, Prefix) else "mebp"  # paged, and pinned
    session, plan = _session(pack, disk, scheme, schedule, evaluate=True)
    windows = Windows(pack.config.vocab_size, scheme)
    for step in range(2):
        session.train_step(step, windows, 1)
    write_trained(tmp_path / "out", session.trainables, pack.config, scheme, "toy")
    score = session.evaluate(windows, SEQ_LEN, 1)
    ids, labels = windows.window(0, SEQ_LEN)

    model = classifier(pack, scheme.labels) if isinstance(scheme, Head) else reference_model(pack)
    if (tmp_path / "out" / TRAINED_FILE).exists():
        state = load_file(tmp_path / "out" / TRAINED_FILE)
        assert model.load_state_dict(state, strict=False).unexpected_keys == []
    else:
        model = PeftModel.from_pretrained(model, tmp_path / "out")
    in_peft = not isinstance(scheme, Head) and (not isinstance(scheme, Norms) or not pack.config.attention_bias)
    assert isinstance(model, PeftModel) == in_peft
    last = int(np.argmax(labels != IGNORED))
    tokens = ids[: last + 1] if isinstance(scheme, Head) else ids
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    if isinstance(scheme, Head):
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[last : last + 1].astype(np.int64)))
    else:
        targets = torch.from_numpy(np.where(labels == IGNORED, -100, labels.astype(np.int64)))
        loss = torch.nn.functional.cross_entropy(logits[scheme.rows_before :], targets)
    assert score.loss == pytest.approx(loss.item(), rel=TOLERANCE)
    if schedule == "mebp":
        ours = session.array("head/f.logits", evaluation=True)
        assert _relative_error(ours, logits[scheme.rows_before :].numpy().reshape(ours.shape)) < TOLERANCE


@pytest.mark.parametrize("mean", [False, True])
def test_the_option_with_the_best_log_likelihood_is_chosen(
    tmp_path: Path, disk: Path, toy_pack: Pack, mean: bool
) -> None:
    generator, count, options = np.random.default_rng(11), 12, 3
    records = []
    for _ in range(count):
        right = int(generator.integers(options))
        for option in range(options):
            ids, labels = (generator.integers(0, 301, SEQ_LEN) for _ in range(2))
            # Answers of unequal length, so that the sum and the mean choose otherwise.
            labels[: SEQ_LEN - 1 - int(generator.integers(1, 6))] = IGNORED
            records.append([option == right, *ids, *labels])
    np.array(records, "<u4").tofile(tmp_path / "examples")
    examples = ExampleFile(tmp_path / "examples", 301, 301, SEQ_LEN, options)
    session, _ = _session(toy_pack, disk, Norms(), "mebp", evaluate=True)
    score = session.evaluate_choices(examples, SEQ_LEN, count, mean)

    reference = Reference(toy_pack, Norms(), _trained(session))
    chosen, right_losses, n_tokens = 0, 0.0, 0
    for example in range(count):
        likelihoods = []
        for index in range(example * options, (example + 1) * options):
            ids, labels = examples.window(index, SEQ_LEN)
            n_labels = int((labels != IGNORED).sum())
            loss = reference.loss(ids, labels).item() * (1 if mean else n_labels)
            likelihoods.append(-loss)
            if examples.is_right(index):
                right = index - example * options
                right_losses += loss * (n_labels if mean else 1)
                n_tokens += n_labels
        chosen += likelihoods.index(max(likelihoods)) == right
    assert score.accuracy == chosen / count
    assert 0 < chosen < count
    assert score.loss == pytest.approx(right_losses / n_tokens, rel=TOLERANCE)
