"""Real steps against torch autograd on transformers' own model with PEFT adapters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from memsim.data.windows import Batches, TokenFile
from memsim.execution.kernels import compute_paths, load_kernels
from memsim.execution.session import Session
from memsim.execution.storage.arrays import SeparateArrays
from memsim.ir.matrix_format import MatrixFormat
from memsim.models.lora import LoraConfig, adapter_shapes
from memsim.models.matrix_formats import Formats
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.adapters import write_adapter
from memsim.weights.pack import Pack
from memsim.weights.synthetic import write_synthetic
from oracle import loss_of, parameter, reference_model, with_adapters
from toy import gradient_names, plan_toy, randomize_adapters, token_file, toy_config
from toy_families import FAMILY_CHANGES, family_config

# Two f32 computations that sum in other orders: against torch in f64, ours and torch's own f32 gradients are both
# off by 1e-6 to 1e-5 on this model, so their difference may be twice that.
TOLERANCE = 3e-5


def _session(pack: Pack, disk: Path, lora: LoraConfig, seq_len: int, schedule: str, **changes: object) -> tuple:
    plan = plan_toy(pack, schedule, seq_len, lora, **changes)
    arena = SeparateArrays(plan.train.program, keep_all=True)
    session = Session(pack, lora, plan.train, plan.evaluate, disk, seed=0, arena=arena)
    randomize_adapters(session)
    return session, plan


def _tokens(tmp_path: Path, pack: Pack) -> TokenFile:
    # Without RoBERTa's padding, of which transformers counts the positions otherwise.
    return token_file(tmp_path / "t.bin", pack.config.vocab_size, first=0 if pack.config.family.causal else 3)


def _adapters(session: Session) -> dict[tuple[int, str], np.ndarray]:
    return {(block, name): np.array(tensor) for block, name, tensor in session.adapters()}


def _relative_error(ours: np.ndarray, theirs: torch.Tensor) -> float:
    reference = theirs.detach().numpy().astype(np.float64)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize(
    ("changes", "lora", "seq_len", "group_size"),
    [
        ({}, LoraConfig(rank=1, alpha=3), 13, 32),
        ({}, LoraConfig(rank=16, alpha=8), 37, 32),
        ({"num_key_value_heads": 4}, LoraConfig(rank=5, alpha=4), 1, 64),
        ({"tie_word_embeddings": False, "num_key_value_heads": 1}, LoraConfig(rank=8, alpha=24), 130, 64),
        ({}, LoraConfig(rank=4, alpha=8, target_modules=("v_proj", "down_proj")), 20, 32),
    ],
    ids=["rank1", "rank16", "no-gqa-one-token", "untied", "two-targets"],
)
@pytest.mark.parametrize("schedule", ["mebp", "backprop", "tiled"])
def test_gradients_equal_autograd(
    tmp_path: Path, disk: Path, changes: dict, lora: LoraConfig, seq_len: int, group_size: int, schedule: str
) -> None:
    pack = write_synthetic(tmp_path / "pack", toy_config(**changes), group_size, 0, lambda *_: None)
    _check_gradients(tmp_path, disk, pack, lora, seq_len, schedule)


# Formats that differ from block to block, from part to part, and none that is the paper's.
MIXED = Formats(
    MatrixFormat("affine", 64),
    (
        (("block_000", "mlp.down_proj"), MatrixFormat("affine", 128)),
        (("block_001", "mlp.down_proj"), MatrixFormat("symmetric8", 32)),
        (("block_001", "self_attn.v_proj"), MatrixFormat("symmetric", 64)),
        (("embed", "embed_tokens"), MatrixFormat("symmetric8", 32)),
    ),
)


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("schedule", ["mebp", "backprop", "tiled"])
def test_gradients_of_every_format_equal_autograd(tmp_path: Path, disk: Path, untied: bool, schedule: str) -> None:
    config = toy_config(tie_word_embeddings=not untied)
    pack = write_synthetic(tmp_path / "pack", config, MIXED, 0, lambda *_: None)
    assert pack.formats == MIXED
    _check_gradients(tmp_path, disk, pack, LoraConfig(rank=4, alpha=8), 21, schedule)


@pytest.mark.parametrize("name", FAMILY_CHANGES)
@pytest.mark.parametrize("schedule", ["mebp", "tiled"])
def test_gradients_of_every_family_equal_autograd(tmp_path: Path, disk: Path, name: str, schedule: str) -> None:
    # 40 tokens: beyond every window, so that a key too many or too few would show.
    pack = write_synthetic(tmp_path / "pack", family_config(name), 32, 0, lambda *_: None)
    _check_gradients(tmp_path, disk, pack, LoraConfig(rank=4, alpha=8), 40, schedule)


def _check_gradients(tmp_path: Path, disk: Path, pack: Pack, lora: LoraConfig, seq_len: int, schedule: str) -> None:
    session, plan = _session(pack, disk, lora, seq_len, schedule)
    before = _adapters(session)
    batches = Batches(_tokens(tmp_path, pack), seq_len, seed=1)
    score = session.train_step(0, batches, 1)

    model = with_adapters(pack, lora, before)
    loss = loss_of(model, *batches.batch(0))
    loss.backward()
    assert score.loss == pytest.approx(loss.item(), rel=TOLERANCE)
    names = gradient_names(plan.train)
    assert len(names) == len(before) == pack.config.num_hidden_layers * len(adapter_shapes(pack.config, lora))
    for (block, name), values in before.items():
        ours = session.array(names[f"block_{block:03d}/{name}"])
        reference = parameter(model, block, name).grad
        assert reference is not None
        assert ours.shape == values.shape
        # One token attends to itself only: q and k get no gradient at all there.
        if reference.norm() > 1e-7:
            assert _relative_error(ours, reference) < TOLERANCE, (block, name)
        else:
            assert np.abs(ours).max() < 1e-7


@pytest.mark.parametrize("schedule", ["mebp", "tiled"])
def test_accumulated_gradients_equal_autograd_over_all_micro_batches(
    tmp_path: Path, disk: Path, toy_pack: Pack, schedule: str
) -> None:
    lora, seq_len, accumulate = LoraConfig(rank=3, alpha=6), 9, 3
    session, plan = _session(toy_pack, disk, lora, seq_len, schedule, accumulate=accumulate)
    before = _adapters(session)
    batches = Batches(token_file(tmp_path / "t.bin", toy_pack.config.vocab_size), seq_len, seed=1)
    score = session.train_step(0, batches, accumulate)

    model = with_adapters(toy_pack, lora, before)
    loss = sum(loss_of(model, *batches.batch(micro)) for micro in range(accumulate)) / accumulate
    loss.backward()
    assert score.loss == pytest.approx(loss.item(), rel=TOLERANCE)
    for source, gradient in gradient_names(plan.train).items():
        part, name = source.split("/", 1)
        reference = parameter(model, int(part.removeprefix("block_")), name).grad
        assert _relative_error(session.array(gradient), reference) < TOLERANCE, source


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        (OptimizerConfig("adamw", lr=1e-3), lambda p: torch.optim.AdamW(p, lr=1e-3)),
        (OptimizerConfig("momentum", lr=5e-3), lambda p: torch.optim.SGD(p, lr=5e-3, momentum=0.9)),
        (OptimizerConfig("sgd", lr=5e-2), lambda p: torch.optim.SGD(p, lr=5e-2)),
    ],
    ids=["adamw", "momentum", "sgd"],
)
def test_twenty_steps_give_torchs_losses(tmp_path: Path, disk: Path, toy_pack: Pack, optimizer, make) -> None:  # type: ignore[no-untyped-def]
    lora, seq_len = LoraConfig(rank=4, alpha=12), 25
    session, _ = _session(toy_pack, disk, lora, seq_len, "mebp", optimizer=optimizer)
    start = _adapters(session)
    model = with_adapters(toy_pack, lora, start)
    torch_optimizer = make([p for p in model.parameters() if p.requires_grad])
    batches = Batches(token_file(tmp_path / "t.bin", toy_pack.config.vocab_size), seq_len, seed=2)
    ours, theirs = [], []
    for step in range(20):
        ours.append(session.train_step(step, batches, 1).loss)
        torch_optimizer.zero_grad()
        loss = loss_of(model, *batches.batch(step))
        loss.backward()
        torch_optimizer.step()
        theirs.append(loss.item())
    moved = [abs(np.array(tensor) - start[key]).max() for key, tensor in _adapters(session).items()]
    assert min(moved) > 1e-4
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.skipif("bf16" not in compute_paths(), reason="this processor cannot multiply in bf16")
@pytest.mark.parametrize("seq_len", [13, 130])
def test_bf16_gradients_are_close_to_autograd(tmp_path: Path, disk: Path, toy_pack: Pack, seq_len: int) -> None:
    # bf16 has 8 bits: each product is off by some 2^-9, and a gradient passes through about twenty of them.
    _check_bf16(tmp_path, disk, toy_pack, seq_len, 4e-2)


@pytest.mark.skipif("bf16" not in compute_paths(), reason="this processor cannot multiply in bf16")
@pytest.mark.parametrize("name", FAMILY_CHANGES)
def test_bf16_gradients_of_every_family_are_close_to_autograd(tmp_path: Path, disk: Path, name: str) -> None:
    pack = write_synthetic(tmp_path / "pack", family_config(name), 32, 0, lambda *_: None)
    # The slope of ReLU jumps: a value near 0 that is rounded to its other side takes its whole gradient along.
    _check_bf16(tmp_path, disk, pack, 40, 0.12 if pack.config.family.activation == "relu" else 6e-2)


def _check_bf16(tmp_path: Path, disk: Path, pack: Pack, seq_len: int, tolerance: float) -> None:
    lora = LoraConfig(rank=4, alpha=8)
    plan = plan_toy(pack, "tiled", seq_len, lora)
    kernels = load_kernels("bf16", 2)
    arena = SeparateArrays(plan.train.program, keep_all=True)
    session = Session(pack, lora, plan.train, None, disk, seed=0, arena=arena, kernels=kernels)
    randomize_adapters(session)
    before = _adapters(session)
    batches = Batches(_tokens(tmp_path, pack), seq_len, seed=1)
    score = session.train_step(0, batches, 1)
    model = with_adapters(pack, lora, before)
    loss = loss_of(model, *batches.batch(0))
    loss.backward()
    assert score.loss == pytest.approx(loss.item(), rel=2e-3)
    for source, gradient in gradient_names(plan.train).items():
        part, name = source.split("/", 1)
        reference = parameter(model, int(part.removeprefix("block_")), name).grad
        error = _relative_error(session.array(gradient), reference)
        assert 1e-5 < error < tolerance, (source, error)  # and really in bf16


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's remarks on adapters loaded onto an unnamed model
@pytest.mark.parametrize("name", ["toy", *FAMILY_CHANGES])
def test_peft_loads_the_exported_adapter_and_gives_the_same_logits(tmp_path: Path, disk: Path, name: str) -> None:
    config = toy_config() if name == "toy" else family_config(name)
    pack = write_synthetic(tmp_path / "pack", config, 32, 0, lambda *_: None)
    lora, seq_len = LoraConfig(rank=4, alpha=12), 21
    session, _ = _session(pack, disk, lora, seq_len, "mebp", evaluate=True)
    tokens = _tokens(tmp_path, pack)
    for step in range(3):
        session.train_step(step, Batches(tokens, seq_len, seed=2), 1)
    write_adapter(tmp_path / "adapter", session.adapters(), pack.config, lora, "toy")
    score = session.evaluate(tokens, seq_len, 1)

    base = reference_model(pack)
    ids, labels = tokens.window(0, seq_len)
    with torch.no_grad():
        plain = loss_of(base, ids, labels).item()
        model = PeftModel.from_pretrained(base, tmp_path / "adapter")
        logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    assert _relative_error(session.array("head/f.logits", evaluation=True), logits) < TOLERANCE
    assert abs(score.loss - plain) > 1e-3  # the adapter matters


def test_oracle_notices_a_wrong_scale(tmp_path: Path, disk: Path, toy_pack: Pack) -> None:
    lora = LoraConfig(rank=4, alpha=12)
    session, _ = _session(toy_pack, disk, lora, 13, "mebp")
    wrong = with_adapters(toy_pack, replace(lora, alpha=13), _adapters(session))
    batches = Batches(token_file(tmp_path / "t.bin", toy_pack.config.vocab_size), 13, seed=1)
    score = session.train_step(0, batches, 1)
    assert abs(score.loss - loss_of(wrong, *batches.batch(0)).item()) > 1e-4
