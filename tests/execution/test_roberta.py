"""RoBERTa's two heads, padding and adapters against transformers' own classes and PEFT."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import RobertaForMaskedLM

from memsim.data.windows import IGNORED
from memsim.errors import WorkerError
from memsim.execution.session import Session
from memsim.execution.storage.arrays import PlannedArena, SeparateArrays, allocate_arena
from memsim.models.config import ModelConfig
from memsim.models.lora import LoraConfig, adapter_shapes
from memsim.weights.adapters import read_adapter, write_adapter
from memsim.weights.pack import Pack
from memsim.weights.synthetic import write_synthetic
from oracle import parameter, reference_model, with_adapters
from toy import gradient_names, plan_toy, randomize_adapters
from toy_families import family_config

SEQ_LEN = 77  # more than a tile of attention, odd
PAD, FIRST_WORD = 1, 3
LORA = LoraConfig(rank=4, alpha=8)
# As in test_oracle: two f32 computations that sum in other orders.
TOLERANCE = 3e-5
HEADS = {"masked": family_config("roberta"), "classifier": replace(family_config("roberta"), num_labels=3)}


@dataclass(frozen=True)
class Windows:
    """Windows of given lengths; a label for each token, or one for all."""

    windows: list[tuple[np.ndarray, np.ndarray]]

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self.windows[step]


def windows(config: ModelConfig, *lengths: int) -> Windows:
    generator, made = np.random.default_rng(7), []
    for count in lengths:
        ids = generator.integers(FIRST_WORD, config.vocab_size, count, dtype=np.uint32)
        if config.num_labels is None:
            labels = np.where(generator.random(count) < 0.4, ids, IGNORED).astype(np.uint32)
            labels[0] = ids[0]
        else:
            labels = generator.integers(0, config.num_labels, 1, dtype=np.uint32)
        made.append((ids, labels))
    return Windows(made)


def logits_and_loss(model: PeftModel, ids: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return transformers' logits and loss of a window that it pads itself."""
    padded = torch.full((1, SEQ_LEN), PAD)
    padded[0, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    targets = torch.from_numpy(np.where(labels == IGNORED, -100, labels.astype(np.int64)))
    if isinstance(model.get_base_model(), RobertaForMaskedLM):
        targets = torch.nn.functional.pad(targets, (0, SEQ_LEN - len(ids)), value=-100)[None]
    out = model(input_ids=padded, attention_mask=(padded != PAD).long(), labels=targets)
    return out.logits[0], out.loss


def session_of(pack: Pack, disk: Path, schedule: str, **changes: object) -> tuple[Session, dict[str, str]]:
    plan = plan_toy(pack, schedule, SEQ_LEN, LORA, **changes)
    session = Session(
        pack, LORA, plan.train, plan.evaluate, disk, seed=0, arena=SeparateArrays(plan.train.program, True)
    )
    randomize_adapters(session)
    return session, gradient_names(plan.train)


def relative_error(ours: np.ndarray, theirs: torch.Tensor) -> float:
    reference = theirs.detach().numpy().astype(np.float64)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


@pytest.fixture(scope="module", params=HEADS)
def pack(request: pytest.FixtureRequest, disk: Path) -> Pack:
    return write_synthetic(disk / f"roberta-{request.param}", HEADS[request.param], 32, 0, lambda *_: None)


@pytest.mark.parametrize("schedule", ["mebp", "tiled"])
def test_padded_windows_give_the_gradients_of_transformers(pack: Pack, disk: Path, schedule: str) -> None:
    lengths = (50, SEQ_LEN, 3)
    session, names = session_of(pack, disk, schedule, accumulate=len(lengths))
    before = {(block, name): np.array(tensor) for block, name, tensor in session.adapters()}
    given = windows(pack.config, *lengths)
    score = session.train_step(0, given, len(lengths))

    model = with_adapters(pack, LORA, before)
    losses = [logits_and_loss(model, *window)[1] for window in given.windows]
    (sum(losses) / len(losses)).backward()
    # The mean over tokens is that of each window; the score is over all tokens.
    counts = np.array([np.sum(labels != IGNORED) for _, labels in given.windows])
    want = float(np.dot(counts, [loss.item() for loss in losses])) / counts.sum()
    assert score.loss == pytest.approx(want, rel=TOLERANCE)
    assert len(names) == pack.config.num_hidden_layers * len(adapter_shapes(pack.config, LORA)) == 24
    for (block, name), _ in before.items():
        ours = session.array(names[f"block_{block:03d}/{name}"])
        assert relative_error(ours, parameter(model, block, name).grad) < TOLERANCE, (block, name)


@pytest.mark.parametrize("count", [1, 40, SEQ_LEN])
def test_logits_equal_those_of_transformers(pack: Pack, disk: Path, count: int) -> None:
    session, _ = session_of(pack, disk, "mebp", evaluate=True)
    model = with_adapters(pack, LORA, {(block, name): tensor for block, name, tensor in session.adapters()})
    given = windows(pack.config, count)

    class Tokens:
        def n_windows(self, seq_len: int) -> int:
            return 1

        def window(self, index: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
            return given.windows[index]

    score = session.evaluate(Tokens(), SEQ_LEN, 1)
    logits, loss = logits_and_loss(model, *given.windows[0])
    assert score.loss == pytest.approx(loss.item(), rel=TOLERANCE)
    rows = slice(0, count) if pack.config.num_labels is None else slice(0, 1)
    want = logits[rows] if pack.config.num_labels is None else logits[None]
    assert relative_error(session.array("head/f.logits", evaluation=True)[rows], want) < TOLERANCE


def test_mebp_and_backprop_give_the_same_bits(pack: Pack, disk: Path) -> None:
    """In an arena that is poisoned wherever a value has died, padding included."""

    def trained(schedule: str) -> list[bytes]:
        plan = plan_toy(pack, schedule, SEQ_LEN, LORA)
        arena = PlannedArena(plan.train, allocate_arena(plan.train.arena_bytes), poison=True)
        session = Session(pack, LORA, plan.train, None, disk, seed=0, arena=arena)
        randomize_adapters(session)
        given = windows(pack.config, SEQ_LEN, 30, 5)
        losses = [session.train_step(step, given, 1).loss for step in range(3)]
        assert np.isfinite(losses).all()
        return [np.float64(losses).tobytes(), *(tensor.tobytes() for _, _, tensor in session.adapters())]

    assert trained("mebp") == trained("backprop")


@pytest.mark.parametrize("count", [0, SEQ_LEN + 1])
def test_a_window_that_does_not_fit_is_refused(pack: Pack, disk: Path, count: int) -> None:
    session, _ = session_of(pack, disk, "mebp")
    given = Windows([(np.zeros(count, np.uint32), np.zeros(1, np.uint32))])
    with pytest.raises(WorkerError, match=f"a window of {count} tokens does not fit a step that was planned for 77"):
        session.train_step(0, given, 1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's remarks on adapters loaded onto an unnamed model
@pytest.mark.parametrize(
    "targets",
    [("q_proj", "v_proj"), ("down_proj",), ("o_proj",), ("up_proj", "down_proj", "k_proj")],
    ids="-".join,
)
def test_adapters_go_to_peft_and_back(pack: Pack, disk: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    lora = replace(LORA, target_modules=targets)
    plan = plan_toy(pack, "mebp", SEQ_LEN, lora)
    session = Session(pack, lora, plan.train, None, disk, seed=0)
    randomize_adapters(session)
    write_adapter(tmp_path / "ours", session.adapters(), pack.config, lora, "toy")
    model = PeftModel.from_pretrained(reference_model(pack), tmp_path / "ours")
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(adapted) == 2 * len(targets) * pack.config.num_hidden_layers
    for block, name, tensor in session.adapters():
        np.testing.assert_array_equal(parameter(model, block, name).detach().numpy(), tensor)
    model.save_pretrained(tmp_path / "theirs")
    found, values = read_adapter(tmp_path / "theirs", pack.config)
    assert (set(found.target_modules), found.rank, found.alpha) == (set(targets), 4, 8.0)
    for block, name, tensor in session.adapters():
        np.testing.assert_array_equal(values[block, name], tensor)


def test_an_adapter_of_peft_on_query_and_value_is_read(tmp_path: Path, pack: Pack) -> None:
    options = PeftLoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    get_peft_model(reference_model(pack), options).save_pretrained(tmp_path)
    found, values = read_adapter(tmp_path, pack.config)
    assert set(found.target_modules) == {"q_proj", "v_proj"}
    assert len(values) == 2 * 2 * pack.config.num_hidden_layers
