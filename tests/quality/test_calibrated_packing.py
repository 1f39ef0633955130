"""Packing with a text: the forward is transformers', and compensated rounding is closer to it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, PreTrainedModel

from memsim.cli.running.pack import command
from memsim.errors import UsageError
from memsim.ir.matrix_format import MatrixFormat
from memsim.models.matrix_formats import formats_of
from memsim.quality.calibrated_packing import TextCalibration, loss_of_checkpoint, loss_of_pack
from memsim.quality.sample_text import Windows
from memsim.weights import compensation
from memsim.weights.compensation import Compensating, InputMoments
from memsim.weights.packing import pack_opened
from memsim.weights.quantize import dequantize, quantize
from memsim.weights.readers.hugging_face import open_checkpoint
from memsim.weights.readers.source import Checkpoint
from memsim.weights.recipe import Recipe
from oracle import loss_of, reference_config, reference_model
from toy_families import family_config

TOLERANCE = 3e-5  # as in test_oracle: two float32 computations that sum in other orders
FAMILIES = ["qwen2", "gemma3_text", "opt"]


def source(directory: Path, name: str) -> tuple[Checkpoint, PreTrainedModel, Windows]:
    """Return a random model as a checkpoint and as transformers has it, and windows of random tokens."""
    config = family_config(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(reference_config(config)).eval()
    for parameter in model.parameters():  # norms and biases start as ones and zeros
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, config.vocab_size, (3, 18)).astype(np.uint32)
    return open_checkpoint(directory), model, [(row[:-1].copy(), row[1:].copy()) for row in tokens]


def mean_loss(model: PreTrainedModel, windows: Windows) -> float:
    with torch.no_grad():
        return float(np.mean([loss_of(model, *window).item() for window in windows]))


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    checkpoint, model, windows = source(tmp_path / "hf", name)
    expected = mean_loss(model, windows)
    assert loss_of_checkpoint(checkpoint, formats_of(32), windows, 2) == pytest.approx(expected, rel=TOLERANCE)
    recipe = Recipe("affine", 64, embedding_bits=8)
    pack = pack_opened(checkpoint, tmp_path / "out", recipe, lambda *_: None).pack
    assert loss_of_pack(pack, windows, 2) == pytest.approx(mean_loss(reference_model(pack), windows), rel=TOLERANCE)


@pytest.mark.parametrize(
    "form", [MatrixFormat("symmetric", 32), MatrixFormat("symmetric", 64), MatrixFormat("affine", 128)]
)
@pytest.mark.parametrize("n_columns", [192, 300])
def test_compensation_lowers_what_the_text_sees(
    monkeypatch: pytest.MonkeyPatch, form: MatrixFormat, n_columns: int
) -> None:
    monkeypatch.setattr(compensation, "STRETCH", 256)  # 300 columns: two stretches, and a last group that is not whole
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((n_columns, n_columns)) * np.exp(rng.standard_normal(n_columns))
    x = (rng.standard_normal((1000, n_columns)) @ mixing).astype(np.float32)  # as correlated as activations are
    rows = rng.standard_normal((32, n_columns)).astype(np.float32)
    moments = InputMoments(n_columns)
    moments.add(x[:400])
    moments.add(x[400:])
    rounding = Compensating(moments.stretches, moments.factors())
    lost = []
    for packed in (quantize(rows, form, "w"), rounding.quantize(rows, form)):
        stored = dequantize(*packed, *rows.shape, form)
        lost.append(np.linalg.norm(x @ (stored - rows).T))
    assert lost[1] < 0.9 * lost[0]


def test_a_factor_is_that_of_the_damped_inverse() -> None:
    x = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    moments = InputMoments(40)
    moments.add(x)
    (factor,) = moments.factors()
    sums = x.T.astype(np.float64) @ x
    sums += 0.01 * np.diag(sums).mean() * np.eye(40)
    assert (np.tril(factor, -1) == 0).all()
    np.testing.assert_allclose(factor.T.astype(np.float64) @ factor @ sums, np.eye(40), atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_calibrated_pack_is_closer_to_its_source(tmp_path: Path, name: str) -> None:
    checkpoint, model, windows = source(tmp_path / "hf", name)
    recipe = Recipe("symmetric")
    rounding = TextCalibration(checkpoint, recipe.formats(checkpoint), windows, 2)
    packs = [
        pack_opened(checkpoint, tmp_path / out, recipe, lambda *_: None, chosen).pack
        for out, chosen in (("plain", None), ("calibrated", rounding))
    ]
    hidden = []
    for chosen in (model, *map(reference_model, packs)):
        with torch.no_grad():
            ids = torch.from_numpy(np.stack([ids for ids, _ in windows]).astype(np.int64))
            hidden.append(chosen(ids, output_hidden_states=True).hidden_states[-1])
    plain, calibrated = ((own - hidden[0]).norm() for own in hidden[1:])
    assert calibrated < plain


def test_a_masked_model_is_refused(tmp_path: Path) -> None:
    checkpoint, _, windows = source(tmp_path / "hf", "qwen2")
    masked = replace(checkpoint, config=family_config("roberta"))
    with pytest.raises(UsageError, match="only causal language models can be calibrated or measured, not roberta"):
        TextCalibration(masked, formats_of(32), windows, 1)


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    source(tmp_path / "hf", "qwen2")
    (tmp_path / "text.txt").write_text("words " * 400)
    done = CliRunner().invoke(
        command, [str(tmp_path / "hf"), str(tmp_path / "out"), "--calibrate", str(tmp_path / "text.txt")]
    )
    assert "--calibrate needs the model's tokens, but it has no tokenizer: " in str(done.exception)
    assert not (tmp_path / "out").exists()
