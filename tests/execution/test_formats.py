"""Checkpoints of other formats pack and train with the loss that transformers has on their own weights."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, PreTrainedModel

from gguf_files import write_gguf
from memsim.data.windows import Batches
from memsim.execution.session import Session
from memsim.execution.storage.arrays import SeparateArrays
from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict
from memsim.models.lora import LoraConfig
from memsim.weights.pack import Pack
from memsim.weights.packing import pack_checkpoint
from memsim.weights.recipe import Recipe
from mlx_files import mlx_quantize, mlx_values, symmetric, write_mlx
from oracle import loss_of, reference_config, reference_model
from toy import plan_toy, token_file
from toy_families import family_config

SEQ_LEN = 21
TOLERANCE = 3e-5  # as in test_oracle: two float32 computations that sum in other orders
# Columns that groups of 64 divide, and what GGUF does not say or llama.cpp fixes.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 32}


def random_model(name: str, **changes: object) -> tuple[ModelConfig, PreTrainedModel]:
    config = config_from_dict(family_config(name).to_dict() | SIZES | changes, name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(reference_config(config)).eval()
    for parameter in model.parameters():  # norms and biases start as ones and zeros
        torch.nn.init.normal_(parameter, std=0.2)
    return config, model


def state_of(model: PreTrainedModel) -> dict[str, np.ndarray]:
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def losses(pack: Pack, model: PreTrainedModel, directory: Path, disk: Path) -> tuple[float, float]:
    """Return the loss of one step of ours, whose fresh adapters change nothing, and of ``model``."""
    lora = LoraConfig(rank=2, alpha=4)
    plan = plan_toy(pack, "mebp", SEQ_LEN, lora)
    session = Session(pack, lora, plan.train, plan.evaluate, disk, 0, SeparateArrays(plan.train.program, keep_all=True))
    batches = Batches(token_file(directory / "t.bin", pack.config.vocab_size), SEQ_LEN, seed=1)
    ours = session.train_step(0, batches, 1).loss
    with torch.no_grad():
        return ours, loss_of(model, *batches.batch(0)).item()


@pytest.mark.parametrize("name", ["llama-linear", "gemma3_text"])
def test_a_q4_0_file_has_the_loss_of_its_own_weights(tmp_path: Path, disk: Path, name: str) -> None:
    config, model = random_model(name, **({"query_pre_attn_scalar": 32} if name == "gemma3_text" else {}))
    state = state_of(model)
    path = write_gguf(tmp_path / "toy.gguf", config.model_type, config.to_dict(), state, lambda _: Kind.Q4_0)
    report = pack_checkpoint(path, tmp_path / "out", 32, lambda *_: None)
    assert report.relative_error == 0
    for key, values in state.items():
        if values.ndim == 2:
            state[key] = gguf.quants.dequantize(gguf.quants.quantize(values, Kind.Q4_0), Kind.Q4_0)
    model.load_state_dict({key: torch.from_numpy(values) for key, values in state.items()}, strict=False)
    ours, theirs = losses(report.pack, model, tmp_path, disk)
    assert ours == pytest.approx(theirs, rel=TOLERANCE)


def mixed(name: str) -> Kind:
    """Return what llama.cpp's quantiser might make of a tensor: several types in a file, and in a block."""
    if "token_embd" in name:
        return Kind.Q8_0
    return Kind.Q5_0 if "ffn_down" in name and "blk.1." in name else Kind.Q4_1


@pytest.mark.parametrize("kind", [lambda _: Kind.Q4_0, mixed])
def test_a_qwen2_file_has_the_loss_that_transformers_has_on_the_file(
    tmp_path: Path, disk: Path, kind: Callable[[str], Kind]
) -> None:
    config, model = random_model("qwen2", head_dim=16, layer_types=None, sliding_window=None)
    path = write_gguf(tmp_path / "toy.gguf", "qwen2", config.to_dict(), state_of(model), kind)
    pack = pack_checkpoint(path, tmp_path / "out", Recipe(), lambda *_: None).pack
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    ours, reference = losses(pack, theirs, tmp_path, disk)
    assert ours == pytest.approx(reference, rel=TOLERANCE)


def affine(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return mlx_quantize(values, 4, 64)


def even(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return symmetric(values, 64)


@pytest.mark.parametrize(
    ("name", "how", "recipe"),
    [("qwen3", affine, Recipe()), ("gemma3_text", affine, Recipe()), ("gemma3_text", even, Recipe("symmetric"))],
)
def test_an_mlx_directory_has_the_loss_of_its_own_weights(
    tmp_path: Path, disk: Path, name: str, how: Callable[..., tuple[np.ndarray, ...]], recipe: Recipe
) -> None:
    config, model = random_model(name)
    state = {key: values.astype(np.float16).astype(np.float32) for key, values in state_of(model).items()}
    parts = {key: how(values) for key, values in state.items() if values.ndim == 2}
    source = write_mlx(tmp_path / "mlx", config.to_dict(), state, parts)
    report = pack_checkpoint(source, tmp_path / "out", recipe, lambda *_: None)
    assert report.relative_error == 0
    state |= {key: mlx_values(*part) for key, part in parts.items()}
    model.load_state_dict({key: torch.from_numpy(values) for key, values in state.items()}, strict=False)
    ours, theirs = losses(report.pack, model, tmp_path, disk)
    assert ours == pytest.approx(theirs, rel=TOLERANCE)


def test_an_asymmetric_mlx_directory_has_the_loss_of_its_packed_weights(tmp_path: Path, disk: Path) -> None:
    config, model = random_model("mistral")
    state = state_of(model)
    parts = {key: mlx_quantize(values, 4, 64) for key, values in state.items() if values.ndim == 2}
    source = write_mlx(tmp_path / "mlx", config.to_dict(), state, parts)
    report = pack_checkpoint(source, tmp_path / "out", 32, lambda *_: None)
    assert 0.01 < report.relative_error < 0.06
    ours, theirs = losses(report.pack, reference_model(report.pack), tmp_path, disk)
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
