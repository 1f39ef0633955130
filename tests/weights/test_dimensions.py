"""What ``plan``, ``simulate`` and ``profile`` know a model by, without packing it; and what is no model."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

import foreign
from gguf_files import write_gguf
from memsim.errors import InputError
from memsim.models.matrix_formats import formats_of
from memsim.weights import dimensions
from memsim.weights.cache import find_model
from memsim.weights.dimensions import find_dimensions
from memsim.weights.readers.gguf_model import open_gguf
from toy_families import family_config

CONFIG = family_config("llama-linear")


def state() -> dict[str, np.ndarray]:
    return {name: values for name, values in foreign.tensors("llama").items()}


def llama_gguf(path: Path, kind: Kind = Kind.Q8_0) -> Path:
    fields = foreign.config("llama") | {"rope_scaling": None}
    return write_gguf(path, "llama", fields, state(), lambda _: kind)


def test_a_gguf_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    model = llama_gguf(tmp_path / "model.gguf").rename(tmp_path / "blob")
    config, packing, name = find_dimensions(str(model))
    assert (config.hidden_size, config.num_hidden_layers, name) == (64, 2, "blob")
    assert formats_of(packing).usual.name == "symmetric8"  # as it would be packed
    (tmp_path / "text.gguf").write_text("no such thing " * 9)
    with pytest.raises(InputError, match=r"text\.gguf is not a GGUF file"):
        find_dimensions(str(tmp_path / "text.gguf"))


def test_the_parts_of_a_split_file_are_one_model(tmp_path: Path) -> None:
    """Split by the gguf library; llama.cpp's own tool writes the same names and keys."""
    whole = llama_gguf(tmp_path / "whole.gguf")
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(tmp_path / "parts.gguf", "llama", split_max_tensors=5)
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", "general.architecture")):
            continue
        kind = field.types[0]
        value = field.contents()
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("parts-*-of-*.gguf"))
    assert len(parts) > 2
    one = open_gguf(whole)
    for part in (parts[0], parts[-1]):
        split = open_gguf(part)
        assert split.config == one.config
        for place, tensor in one.tensors.items():
            with tensor.open() as ours, split.tensors[place].open() as theirs:
                count = tensor.rows[0]
                np.testing.assert_array_equal(ours.read(0, count).values, theirs.read(0, count).values)
    pack, _ = find_model(str(parts[1]), lambda *_: None)
    assert pack.config == one.config
    moved = parts[2].rename(tmp_path / "away")
    with pytest.raises(InputError, match=f"{parts[2].name} is not here; {parts[0].name} is one of {len(parts)} files"):
        open_gguf(parts[0])
    moved.rename(parts[2])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(InputError, match=rf"{parts[1].name} says to be part 2 of {len(parts)}, counted from 0"):
        open_gguf(parts[0])
    alone = parts[2].rename(tmp_path / "alone.gguf")
    with pytest.raises(InputError, match="is one of .* files; give them the names"):
        open_gguf(alone)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "cache"))


def test_of_a_model_on_the_hub_only_the_configuration_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(foreign.config("qwen3")))
    asked = []

    def fetch(name: str) -> Path:
        asked.append(name)
        return tmp_path / "config.json"

    monkeypatch.setattr(dimensions, "fetch_config", fetch)
    config, packing, name = find_dimensions("Owner/Some-Model")
    assert (config.model_type, packing, name, asked) == ("qwen3", 32, "Some-Model", ["Owner/Some-Model"])


def test_a_directory_is_planned_with_the_formats_that_it_is_packed_into(tmp_path: Path) -> None:
    directory = foreign.write(tmp_path / "model", "llama")
    config, packing, _ = find_dimensions(str(directory))
    pack, _ = find_model(str(directory), lambda *_: None)
    assert (config, formats_of(packing)) == (pack.config, pack.formats)
    (directory / "model.safetensors").unlink()  # dimensions do without
    assert find_dimensions(str(directory))[0] == config


def test_what_people_take_for_a_model_is_called_what_it_is(tmp_path: Path) -> None:
    hub = tmp_path / "models--Owner--Model"
    (hub / "refs").mkdir(parents=True)
    (hub / "snapshots" / "abc").mkdir(parents=True)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Owner/Model"}))
    for find in (lambda name: find_model(name, lambda *_: None), find_dimensions):
        with pytest.raises(InputError, match=r"is what the Hugging Face hub's cache keeps for a model; give .*/abc$"):
            find(str(hub))
        with pytest.raises(InputError, match=r"is an adapter; give the model that it was trained on, 'Owner/Model'$"):
            find(str(adapter))
