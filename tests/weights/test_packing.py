import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from safetensors.torch import save_file

from memsim.errors import InputError
from memsim.models.parts import matrices, part_names, vectors
from memsim.weights import packing
from memsim.weights.pack import open_pack, verify_part
from memsim.weights.pack_writer import pack_bytes
from memsim.weights.packing import pack_checkpoint
from memsim.weights.quantize import dequantize
from memsim.weights.readers.hugging_face import hugging_face_name
from memsim.weights.tensor_file import map_file, view
from toy_checkpoints import TOY, UNTIED, naive_dequantized, silent, source_tensors, write_checkpoint, write_config
from toy_families import FAMILY_CHANGES, family_config


def unpacked(pack):
    """Return every tensor of a pack, dequantised, under Hugging Face's name; checksums are verified."""
    tensors = {}
    for part in part_names(pack.config):
        mapped = map_file(pack.part(part).path)
        verify_part(pack, part, mapped)
        stored = {name: view(mapped, entry) for name, entry in pack.part(part).tensors.items()}
        for name, shape in matrices(pack.config, part).items():
            weights = dequantize(stored[f"{name}.q"], stored[f"{name}.scales"], *shape, pack.formats.of(part, name))
            tensors[hugging_face_name(part, f"{name}.weight", pack.config.family)] = weights
        for name in vectors(pack.config, part):
            tensors[hugging_face_name(part, name, pack.config.family)] = stored[name]
    return tensors


def assert_packed(pack, originals):
    found = unpacked(pack)
    assert set(found) == set(originals)
    config = pack.config
    matrix_names = {
        hugging_face_name(part, f"{name}.weight", config.family)
        for part in part_names(config)
        for name in matrices(config, part)
    }
    for name, original in originals.items():
        expected = naive_dequantized(original, pack.group_size) if name in matrix_names else original
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.parametrize("config", [TOY, UNTIED])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_dequantises_to_the_rounded_original(tmp_path, config, group_size, shards):
    source = write_checkpoint(tmp_path / "hf", config, shards=shards)
    report = pack_checkpoint(source, tmp_path / "out", group_size, silent)
    assert (report.pack.source, report.pack.seed, report.pack.eos_token_id) == ("packed", None, 3)
    assert report.pack.n_bytes == pack_bytes(config, group_size)
    assert_packed(report.pack, source_tensors(config))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


@pytest.mark.parametrize(("tied", "dtype"), [(True, "bfloat16"), (False, "float16"), (True, "float32")])
def test_packs_what_transformers_saves(tmp_path, tied, dtype):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=77,
        hidden_size=40,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    pack = pack_checkpoint(tmp_path / "hf", tmp_path / "out", 32, silent).pack
    expected_config = replace(TOY, tie_word_embeddings=tied, rope_theta=config.rope_parameters["rope_theta"])
    assert pack.config == expected_config
    names = {name for name in model.state_dict() if not (tied and name == "lm_head.weight")}
    assert_packed(pack, {name: model.state_dict()[name].float().numpy() for name in names})


@pytest.mark.parametrize("name", [*FAMILY_CHANGES, "roberta-classifier"])
def test_packs_every_family_as_transformers_saves_it(tmp_path, name):
    pytest.importorskip("transformers")
    import torch

    from oracle import model_class, reference_config

    config = family_config(name) if name in FAMILY_CHANGES else replace(family_config("roberta"), num_labels=3)
    torch.manual_seed(0)
    model = model_class(config).from_config(reference_config(config))
    for parameter in model.parameters():  # norms and biases start as ones and zeros
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "hf")
    pack = pack_checkpoint(tmp_path / "hf", tmp_path / "out", 32, silent).pack
    assert pack.config == config
    assert_packed(pack, _as_packed(model, config))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_packs_the_text_model_of_a_multimodal_checkpoint(tmp_path, prefix):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from oracle import reference_config

    config = family_config("gemma3_text")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(reference_config(config))
    tensors = {name.replace("model.", prefix, 1): tensor for name, tensor in model.state_dict().items()}
    del tensors["lm_head.weight"]
    tensors["vision_tower.embed.weight"] = torch.zeros(4, 4)
    (tmp_path / "hf").mkdir()
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    text = {"text_config": json.loads(model.config.to_json_string()), "model_type": "gemma3", "eos_token_id": [1, 106]}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(text))
    pack = pack_checkpoint(tmp_path / "hf", tmp_path / "out", 32, silent).pack
    assert (pack.config, pack.eos_token_id) == (replace(config, multimodal_type="gemma3"), 1)
    named = {
        name.replace("model.", "model.language_model.", 1): rows for name, rows in _as_packed(model, config).items()
    }
    assert_packed(pack, named)


def _as_packed(model, config):
    """Return what a pack holds of a transformers model: norm weights as factors, no tied head."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for tied in ("lm_head.weight", "lm_head.decoder.weight", "lm_head.decoder.bias"):
        if config.tie_word_embeddings:
            state.pop(tied, None)
    if config.model_type == "gemma3_text":
        state |= {name: np.float32(1) + values for name, values in state.items() if values.ndim == 1}
    return state


def test_reported_errors_are_those_of_the_stored_weights(tmp_path):
    originals = source_tensors(UNTIED)
    originals["model.layers.1.mlp.up_proj.weight"][:] = 0
    report = pack_checkpoint(write_checkpoint(tmp_path / "hf", UNTIED, originals), tmp_path / "out", 32, silent)
    found = unpacked(report.pack)
    squared = {error.name: (error.squared_error, error.squared_norm) for error in report.errors}
    assert set(squared) == {name for name, values in originals.items() if values.ndim == 2}
    for error in report.errors:
        original = originals[error.name].astype(np.float64)
        lost = np.linalg.norm(found[error.name] - original)
        assert error.shape == original.shape
        # Sums over a few thousand squares in float32.
        assert error.relative_error == pytest.approx(lost / (np.linalg.norm(original) or 1), rel=1e-5)
        assert error.max_error == pytest.approx(np.abs(found[error.name] - original).max(), rel=1e-6)
        assert error.original == "f32"
    total = sum(pair[0] for pair in squared.values()) / sum(pair[1] for pair in squared.values())
    assert report.relative_error == pytest.approx(total**0.5, rel=1e-5)
    # Uniform rounding in groups of 32 normal values: step / sqrt(12) with step about 2.1 sigma / 8, some 8 %.
    assert 0.07 < report.relative_error < 0.11


def test_scales_of_an_enormous_matrix_take_several_passes_and_give_the_same_file(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "hf", TOY)
    once = pack_checkpoint(source, tmp_path / "once", 32, silent).pack
    monkeypatch.setattr(packing, "_KEPT_SCALES_BYTES", 2 * 80)  # one group of the 80 padded vocabulary rows
    monkeypatch.setattr(packing, "_CHUNK_WEIGHTS", 16 * 40)
    again = pack_checkpoint(source, tmp_path / "again", 32, silent).pack
    assert again.model_hash == once.model_hash


def test_tokenizer_files_are_copied(tmp_path):
    source = write_checkpoint(tmp_path / "hf", TOY)
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    (source / "tokenizer_config.json").write_text("{}")
    pack = pack_checkpoint(source, tmp_path / "out", 32, silent).pack
    assert pack.tokenizer == tmp_path / "out" / "tokenizer.json"
    assert pack.tokenizer.read_text() == '{"version": "1.0"}'
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "{}"
    os.truncate(source / "tokenizer.json", 129 << 20)  # sparse
    with pytest.raises(InputError, match="tokenizer.json is larger than 128 MiB; no tokenizer is that large"):
        pack_checkpoint(source, tmp_path / "other", 32, silent)


def test_progress_grows_to_the_total(tmp_path):
    calls = []
    source = write_checkpoint(tmp_path / "hf", TOY)
    pack_checkpoint(source, tmp_path / "out", 32, lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert done[-1] == calls[0][2] == sum(values.nbytes for values in source_tensors(TOY).values())


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_nan_weights_are_refused_and_leave_nothing(tmp_path, name):
    tensors = source_tensors(TOY)
    tensors[name].reshape(-1)[-1] = np.nan
    source = write_checkpoint(tmp_path / "hf", TOY, tensors)
    with pytest.raises(InputError, match=f"{name} holds NaN or infinite weights"):
        pack_checkpoint(source, tmp_path / "out", 32, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_existing_output_is_refused_and_kept(tmp_path):
    source = write_checkpoint(tmp_path / "hf", TOY)
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "out", tmp_path / "link", tmp_path.root):
        with pytest.raises(InputError, match="exists already; choose another directory"):
            pack_checkpoint(source, type(tmp_path)(out), 32, silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "link", "out"]


def test_a_disk_too_small_is_refused_before_writing(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "hf", TOY)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=pack_bytes(TOY, 32) - 1))
    calls = []
    with pytest.raises(InputError, match="the pack needs 0.1 MiB in .*, which has 0.1 MiB free"):
        pack_checkpoint(source, tmp_path / "out", 32, lambda *call: calls.append(call))
    assert calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = write_checkpoint(tmp_path / "hf", TOY)
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(InputError, match="cannot write .*out: No space left on device"):
        pack_checkpoint(source, tmp_path / "out", 32, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


INTERRUPTED = """
import os, sys
from pathlib import Path
from memsim.weights.packing import pack_checkpoint

def progress(label, done_bytes, total_bytes):
    if 2 * done_bytes > total_bytes:
        assert any(path.name.endswith(".tmp") for path in Path(sys.argv[2]).parent.iterdir())
        os.kill(os.getpid(), int(sys.argv[3]))

pack_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), 32, progress)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_pack_leaves_no_pack_and_the_next_one_cleans_up(tmp_path, number):
    source, out = write_checkpoint(tmp_path / "hf", TOY), tmp_path / "out"
    command = [sys.executable, "-c", INTERRUPTED, str(source), str(out), str(int(number))]
    assert subprocess.run(command, capture_output=True).returncode == -number
    assert not out.exists()
    if number == signal.SIGINT:
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    pack_checkpoint(source, out, 32, silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]
    assert open_pack(out).source == "packed"


PEAK = """
import re, sys
from pathlib import Path
from memsim.weights.packing import pack_checkpoint

pack_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), 32, lambda *call: None)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def write_sparse_checkpoint(directory, config):
    """Write a float32 checkpoint of zeros that takes no space on disk."""
    header, position = {}, 0
    for part in part_names(config):
        shapes = {f"{name}.weight": shape for name, shape in matrices(config, part).items()}
        shapes |= vectors(config, part)
        for name, shape in shapes.items():
            end = position + 4 * prod(shape)
            header[hugging_face_name(part, name)] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
            position = end
    directory.mkdir()
    write_config(directory, config)
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)


def test_packing_a_544_mb_matrix_stays_under_300_mb(tmp_path):
    config = replace(TOY, vocab_size=151_936, hidden_size=896, num_hidden_layers=1, num_attention_heads=14, head_dim=64)
    write_sparse_checkpoint(tmp_path / "hf", config)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "hf"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # The peak of everything resident, clean library pages included: more than the footprint. Of the files written,
    # at most 16 MiB are dirty (test_tensor_file).
    assert int(done.stdout) * 1024 + (16 << 20) < 300e6
    assert open_pack(tmp_path / "out").n_bytes == pack_bytes(config, 32)
