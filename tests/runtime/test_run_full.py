"""Capped runs that train every weight: from a bf16 checkpoint to one, killed, resumed, and made again from seeds."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from capped_runs import cache, run_in_step, run_toy, workers, write_model
from memsim.cli import main
from memsim.errors import InputError, UsageError
from memsim.runtime import layout
from memsim.runtime.replay_seeds import replay_seeds
from memsim.runtime.resume import read_resumption, resume
from memsim.runtime.run_progress import RunProgress, StepDone
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.cache import find_model
from memsim.weights.tensor_file import TensorFileWriter, TensorSpec
from memsim.weights.whole_model import MODEL_FILE
from toy import toy_config
from toy_checkpoints import source_tensors, write_config

assert cache  # a fixture, found by name
pytestmark = pytest.mark.usefixtures("cache")

CONFIG = toy_config(vocab_size=300, num_key_value_heads=1)
SETTINGS = {"scheme": "full", "schedule": "mezo", "seq_len": 32, "steps": 6, "checkpoint_every": 2}
SETTINGS |= {"optimizer": OptimizerConfig(lr=1e-4), "seed": 3, "tokenizer": "bytes"}


@pytest.fixture(scope="module")
def checkpoint(disk: Path) -> Path:
    """A Hugging Face directory whose matrices are bf16, as those of real models are."""
    directory = disk / "bf16-model"
    directory.mkdir()
    write_config(directory, CONFIG)
    tensors = {name: 0.2 * values for name, values in source_tensors(CONFIG, seed=4).items()}
    bits = {name: (values.view(np.uint32) >> 16).astype(np.uint16) for name, values in tensors.items()}
    with (directory / "model.safetensors").open("wb") as file:
        specs = {name: TensorSpec(values.shape, "bf16") for name, values in bits.items()}
        writer = TensorFileWriter(file, specs)
        for name, values in bits.items():
            writer.write(name, values)
        writer.finish()
    return directory


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    import torch

    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).to(torch.float32).numpy() for name in file.keys() if "_pad" not in name}  # noqa: SIM118


def test_a_run_starts_from_the_checkpoints_bf16_and_ends_in_a_model_that_runs_again(
    disk: Path, checkpoint: Path
) -> None:
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    before, notes = tensors_of(checkpoint), []
    still = run_toy(checkpoint, disk / "still", RunProgress(note=notes.append), **SETTINGS | {
        "optimizer": OptimizerConfig(lr=0.0), "steps": 1
    })  # fmt: skip
    assert still.result.exit_reason == "done"
    assert not any("4-bit" in note for note in notes)
    after = tensors_of(disk / "still")
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], before[name]) for name in before)  # its own bits, not those of the pack
    assert still.result.trainable_parameters == sum(values.size for values in before.values())
    model = AutoModelForCausalLM.from_pretrained(disk / "still", dtype="float32")
    assert np.array_equal(
        model.model.layers[1].mlp.up_proj.weight.detach(), before["model.layers.1.mlp.up_proj.weight"]
    )
    assert (
        find_model(str(disk / "still"), lambda *_: None)[0].config
        == find_model(str(checkpoint), lambda *_: None)[0].config
    )
    again = run_toy(disk / "still", disk / "again", **SETTINGS | {"steps": 1})
    assert again.result.exit_reason == "done"
    moved = tensors_of(disk / "again")
    assert all(np.any(moved[name] != before[name]) for name in before)


def test_a_killed_run_goes_on_to_the_same_bits_and_its_seeds_give_them_again(disk: Path, checkpoint: Path) -> None:
    def kill(step: StepDone) -> None:
        if step.step == 5:
            os.kill(workers()[0].pid, signal.SIGKILL)

    packed = {file: file.read_bytes() for file in find_model(str(checkpoint), lambda *_: None)[0].directory.iterdir()}
    whole = run_toy(checkpoint, disk / "full-whole", **SETTINGS)
    assert whole.result.exit_reason == "done"
    out = disk / "full-killed"
    killed = run_in_step(checkpoint, out, RunProgress(step=kill), **SETTINGS)
    assert killed.result.exit_reason == "killed"
    resumed = resume(read_resumption(out, {}), RunProgress())
    assert resumed.result.exit_reason == "done"
    assert [step.loss for step in resumed.result.steps] == [step.loss for step in whole.result.steps]
    for name in (MODEL_FILE, "config.json", "seeds.jsonl"):
        assert (out / name).read_bytes() == (whole.directory / name).read_bytes()
    assert replay_seeds(out / "seeds.jsonl", str(checkpoint), disk / "full-replayed", lambda _: None) == 6
    assert (disk / "full-replayed" / MODEL_FILE).read_bytes() == (out / MODEL_FILE).read_bytes()
    assert all(file.read_bytes() == data for file, data in packed.items())  # the pack is as it was


def test_a_pack_without_a_checkpoint_starts_as_it_is_and_stays_within_its_plan(disk: Path) -> None:
    model, notes = write_model(disk / "full-pack").directory, []
    done = run_toy(
        model, disk / "full-of-pack", RunProgress(note=notes.append), **SETTINGS | {"steps": 2, "seq_len": 128}
    )
    result = done.result
    assert result.exit_reason == "done"
    assert any("full-pack is a pack of 4-bit weights: the bf16 weights to train start as they are" in n for n in notes)
    assert result.peak_footprint_bytes is not None and result.planned_footprint_bytes is not None
    # What any schedule's plan may miss: pages of the interpreter that only a step touches.
    assert result.peak_footprint_bytes < result.planned_footprint_bytes + 6_000_000
    step = result.steps[0]
    assert step.bytes_paged_in is not None and step.bytes_written is not None
    assert 0.9 < step.bytes_paged_in / step.bytes_written < 1.1  # both forwards in one stream, and one update


def test_a_disk_without_room_is_refused_before_a_run(
    disk: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "matrices_bytes", lambda config: 1 << 60)
    with pytest.raises(InputError, match="training every weight in place needs .* free some space"):
        run_toy(checkpoint, disk / "full-no-room", **SETTINGS)
    assert not (disk / "full-no-room").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "mebp"}, "--scheme full is trained by zeroth-order schedules only"),
        ({"schedule": "auto"}, "--scheme full is trained by zeroth-order schedules only"),
        ({"schedule": "zo-adam"}, "--schedule zo-adam keeps state as large as the model"),
        ({"compute": "bf16"}, "--compute bf16 needs packed products"),
    ],
)
def test_what_cannot_work_is_refused(disk: Path, checkpoint: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run_toy(checkpoint, disk / "full-refused", **SETTINGS | changes)


def test_options_of_other_schemes_are_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--budget", "400MB", "--model", str(checkpoint), "--scheme", "full", "--schedule", "mezo"]
    monkeypatch.setattr(sys, "argv", ["memsim", "run", *options, "--lora-rank", "4"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--lora-rank belongs to --scheme lora, not to full" in capsys.readouterr().err
