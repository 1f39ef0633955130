import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from memsim.errors import InputError
from memsim.weights.readers.hugging_face import is_checkpoint, open_checkpoint
from toy_checkpoints import TOY, UNTIED, source_tensors, write_checkpoint, write_config

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("config", [TOY, UNTIED])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_found(tmp_path, config, shards):
    source = write_checkpoint(tmp_path / "hf", config, shards=shards)
    checkpoint = open_checkpoint(source)
    tensors = source_tensors(config)
    assert is_checkpoint(source)
    assert {tensor.name for tensor in checkpoint.tensors.values()} == set(tensors)
    assert checkpoint.n_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert checkpoint.config == config
    for tensor in checkpoint.tensors.values():
        with tensor.open() as reader:
            rows = reader.read(0, tensor.rows[0]).values
        np.testing.assert_array_equal(rows.reshape(tensors[tensor.name].shape), tensors[tensor.name])


def test_rows_are_read_in_any_order_and_type(tmp_path):
    tensors = source_tensors(TOY)
    expected = tensors[NAME].astype(np.float16)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "hf", TOY, tensors | {NAME: expected}))
    with checkpoint.tensors["block_001", "mlp.down_proj.weight"].open() as reader:
        for first, count in ((30, 10), (0, 1), (7, 9)):
            rows = reader.read(first, count).values
            assert rows.dtype == np.float32
            np.testing.assert_array_equal(rows, expected[first : first + count])


def test_a_file_truncated_after_its_check_is_an_error(tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "hf", TOY))
    os.truncate(tmp_path / "hf" / "model.safetensors", 9000)
    tensor = max(checkpoint.tensors.values(), key=lambda tensor: tensor.entry.start)
    with tensor.open() as reader, pytest.raises(InputError, match=f"{tensor.name} ends too early"):
        reader.read(0, 1)


@pytest.mark.parametrize(
    ("value", "expected"), [(5, 5), ([7, 8], 7), (77, None), (True, None), ("x", None), ([], None)]
)
def test_end_of_text_token(tmp_path, value, expected):
    write_config(write_checkpoint(tmp_path, TOY), TOY, eos_token_id=value)
    assert open_checkpoint(tmp_path).eos_token_id == expected


def test_shards_may_be_links_as_in_the_hub_cache(tmp_path):
    source = write_checkpoint(tmp_path / "hf", TOY, shards=2)
    for path in source.glob("*.safetensors"):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert len(open_checkpoint(source).tensors) == len(source_tensors(TOY))


def changed(name, values):
    tensors = source_tensors(TOY)
    if values is None:
        del tensors[name]
    else:
        tensors[name] = values
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed(NAME, None), f"has no tensor '{NAME}'; is it a whole checkpoint"),
        (
            changed(NAME, np.zeros((72, 40), np.float32)),
            f"'{NAME}' has shape .72, 40., but config.json implies .40, 72.",
        ),
        (changed(NAME, np.zeros((2880,), np.float32)), "has shape .2880."),
        (changed(NAME, np.zeros((40, 72), np.int8)), f"'{NAME}' is i8; memsim packs bf16, f16, f32"),
        (changed(NAME, np.zeros((40, 72), np.float64)), "is f64; memsim packs"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path, tensors, message):
    source = write_checkpoint(tmp_path / "hf", TOY, tensors)
    with pytest.raises(InputError, match=message):
        open_checkpoint(source)


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..safetensors", ".safetensors", "x.bin", 3, None],
)
def test_shard_names_stay_inside_the_directory(tmp_path, shard):
    write_config(tmp_path, TOY)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(InputError, match="the shard of 'w', is not a safetensors file name"):
        open_checkpoint(tmp_path)


def test_broken_directories_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read .*/none/config.json: No such file"):
        open_checkpoint(tmp_path / "none")
    write_config(tmp_path, TOY)
    with pytest.raises(InputError, match="neither model.safetensors nor .*save_pretrained"):
        open_checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(InputError, match="'weight_map' must be an object"):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {NAME: "model-1.safetensors"}}))
    with pytest.raises(InputError, match="cannot read .*model-1.safetensors: No such file"):
        open_checkpoint(tmp_path)
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "model-1.safetensors")
    with pytest.raises(InputError, match="has no tensor 'model.embed_tokens.weight'; is it a whole checkpoint"):
        open_checkpoint(tmp_path)
    write_config(tmp_path, TOY, num_hidden_layers=9_999)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model-1.safetensors").read_bytes())
    with pytest.raises(InputError, match="names 9999 layers, but the files hold 1 tensors"):
        open_checkpoint(tmp_path)
    write_config(tmp_path, TOY, model_type="gpt2")
    with pytest.raises(InputError, match="'gpt2' is not supported"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_configuration_with_fewer_layers_than_the_file_is_refused(tmp_path, shards):
    write_checkpoint(tmp_path / "hf", TOY, source_tensors(TOY), shards=shards)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    expected = r"hf holds the tensor 'model\.layers\.1\.[a-z_.]+', but config.json names 1 layers \(num_hidden_layers\)"
    with pytest.raises(InputError, match=expected):
        open_checkpoint(tmp_path / "hf")


def test_truncated_weights_are_refused(tmp_path):
    path = write_checkpoint(tmp_path, TOY) / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=f"{path}: tensor .* it is truncated or corrupt"):
        open_checkpoint(tmp_path)
