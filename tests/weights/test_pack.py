import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memsim.errors import InputError
from memsim.models.parts import TensorSpec, part_names, part_tensors
from memsim.weights.pack import Pack, model_hash, open_pack, verify_part
from memsim.weights.pack_writer import pack_bytes
from memsim.weights.synthetic import write_synthetic
from memsim.weights.tensor_file import TensorFileWriter, map_file
from toy_checkpoints import TOY, UNTIED, silent


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("packs") / "toy", TOY, 32, 7, silent).directory


@pytest.fixture
def directory(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "pack")


def edit(directory, change):
    """Apply ``change`` to pack.json and give it the hash that belongs to it, as a careful forger would."""
    path = directory / "pack.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("config", [TOY, UNTIED])
@pytest.mark.parametrize("group_size", [32, 64])
def test_a_pack_opens_with_all_that_it_holds(tmp_path, config, group_size):
    write_synthetic(tmp_path / "p", config, group_size, 3, silent)
    pack = open_pack(tmp_path / "p")
    assert (pack.config, pack.group_size, pack.source, pack.seed) == (config, group_size, "synthetic", 3)
    assert list(pack.parts) == part_names(config)
    assert pack.n_bytes == pack_bytes(config, group_size) == sum(p.path.stat().st_size for p in pack.parts.values())
    for name, part in pack.parts.items():
        specs = part_tensors(config, name, group_size)
        assert {key: TensorSpec(entry.shape, entry.dtype) for key, entry in part.tensors.items()} == specs
        verify_part(pack, name, map_file(part.path))
    assert pack.model_hash == model_hash(config, group_size, {n: p.sha256 for n, p in pack.parts.items()})
    assert (pack.tokenizer, pack.eos_token_id) == (None, None)


def test_the_hash_names_configuration_group_size_and_weights():
    checksums = {"embed": "a", "head": "b"}
    hashes = {
        model_hash(TOY, 32, checksums),
        model_hash(TOY, 64, checksums),
        model_hash(replace(TOY, rope_theta=1e4), 32, checksums),
        model_hash(TOY, 32, {"embed": "b", "head": "a"}),
    }
    assert len(hashes) == 4


def test_tokenizer_is_found(directory):
    (directory / "tokenizer.json").write_text("{}")
    edit(directory, lambda data: data.update(eos_token_id=76))
    pack = open_pack(directory)
    assert (pack.tokenizer, pack.eos_token_id) == (directory / "tokenizer.json", 76)


def test_opening_reads_no_tensor_and_verifying_does(directory):
    path = directory / "block_001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    pack = open_pack(directory)
    verify_part(pack, "block_000", map_file(directory / "block_000.safetensors"))
    with pytest.raises(InputError, match=f"{path} does not match its checksum.*delete {directory} and pack again"):
        verify_part(pack, "block_001", memoryview(data))


def forge_layers(data):
    data["config"]["num_hidden_layers"] = 9_999


FORGERIES = {
    "schema": (lambda d: d.update(schema="memsim.pack/3"), "schema 'memsim.pack/3' is not 'memsim.pack/1' or"),
    "no schema": (lambda d: d.pop("schema"), "schema None"),
    "group size": (lambda d: d.update(group_size=16), "'group_size' must be 32 or 64, not 16"),
    "group size a list": (lambda d: d.update(group_size=[32]), "'group_size' must be 32 or 64"),
    "source": (lambda d: d.update(source="real"), "'source' must be 'synthetic' or 'packed', not 'real'"),
    "seed": (lambda d: d.update(seed=-1), "'seed' must be null or an integer"),
    "eos": (lambda d: d.update(eos_token_id=77), "'eos_token_id' must be null or an integer below 77, not 77"),
    "config": (lambda d: d.update(config=[]), "'config' must be an object"),
    "config field": (lambda d: d["config"].pop("hidden_size"), "has no 'hidden_size'"),
    "architecture": (lambda d: d["config"].update(model_type="gpt2"), "model_type 'gpt2' is not supported"),
    "layers": (forge_layers, "'parts' must describe embed, 9999 blocks and head"),
    "fewer layers": (lambda d: d["config"].update(num_hidden_layers=1), "'parts' must describe embed, 1 blocks"),
    "other config": (lambda d: d["config"].update(rope_theta=1e4), "model_hash does not belong"),
    "wider": (lambda d: d["config"].update(hidden_size=80), "needs u32 \\[5, 12, 16\\]"),
    "other vocabulary": (lambda d: d["config"].update(vocab_size=90), "'embed_tokens.q' is u32"),
    "parts a list": (lambda d: d.update(parts=[1, 2, 3, 4]), "'parts' must describe"),
    "part a string": (lambda d: d["parts"].update(head="head.safetensors"), "part 'head' must be described"),
    "absolute": (lambda d: d["parts"]["head"].update(file="/etc/passwd"), "with file 'head.safetensors'"),
    "parent": (lambda d: d["parts"]["head"].update(file="../head.safetensors"), "with file 'head.safetensors'"),
    "other part's file": (lambda d: d["parts"]["head"].update(file="embed.safetensors"), "with file 'head.safe"),
    "renamed": (lambda d: d["parts"].update(tail=d["parts"].pop("head")), "part 'head' must be described"),
    "size": (lambda d: d["parts"]["head"].update(n_bytes=1), "but .*pack.json says 1; it is truncated or corrupt"),
    "checksum": (lambda d: d["parts"]["head"].update(sha256="0" * 64), "model_hash does not belong"),
    "no checksum": (lambda d: d["parts"]["head"].update(sha256=None), "part 'head' has no valid sha256"),
    "odd checksum": (lambda d: d["parts"]["head"].update(sha256="0" * 63), "part 'head' has no valid sha256"),
    "hash": (lambda d: d.update(model_hash="0" * 64), "model_hash does not belong"),
    "huge rope": (lambda d: d["config"].update(rope_theta=10**400), "'rope_theta' must be a number from"),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_forged_descriptions_are_refused(directory, case):
    change, message = FORGERIES[case]
    edit(directory, change)
    with pytest.raises(InputError, match=message) as caught:
        open_pack(directory)
    assert str(caught.value).isprintable()


def head_specs():
    return part_tensors(TOY, "head", 32)


@pytest.mark.parametrize(
    ("specs", "alignment", "message"),
    [
        ({}, 64, "has no tensor 'norm.weight'"),
        ({"norm.weight": TensorSpec((40,), "u32")}, 64, "'norm.weight' is u32 \\[40\\], but the model needs f32"),
        ({"norm.weight": TensorSpec((41,), "f32")}, 64, "is f32 \\[41\\], but the model needs f32 \\[40\\]"),
        ({**head_specs(), "more": TensorSpec((1,), "f32")}, 64, "holds the unknown tensor 'more'"),
        ({"_pad9": TensorSpec((4,), "u8"), **head_specs()}, 1, "starts at byte .*, not a multiple of 64"),
    ],
)
def test_files_that_do_not_hold_their_part_are_refused(directory, specs, alignment, message):
    path = directory / "head.safetensors"
    with path.open("wb") as file:
        writer = TensorFileWriter(file, specs, tensor_alignment=alignment)
        for name, spec in specs.items():
            if not name.startswith("_pad"):  # those the writer fills
                writer.write(name, np.zeros(spec.shape, {"f32": "<f4", "u32": "<u4"}[spec.dtype]))
        writer.finish()
    size = path.stat().st_size if specs else 0
    edit(directory, lambda data: data["parts"]["head"].update(n_bytes=size))
    with pytest.raises(InputError, match=message):
        open_pack(directory)


def test_missing_and_truncated_files_are_refused(directory):
    part = directory / "block_001.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{part}: .*truncated or corrupt"):
        open_pack(directory)
    part.unlink()
    with pytest.raises(InputError, match=f"cannot read {part}: No such file"):
        open_pack(directory)
    (directory / "pack.json").write_bytes(b" " * (5 << 20))
    with pytest.raises(InputError, match="is larger than the 4 MiB"):
        open_pack(directory)
    (directory / "pack.json").unlink()
    with pytest.raises(InputError, match="cannot read .*pack.json"):
        open_pack(directory)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
places = st.sampled_from(
    [(), ("schema",), ("config",), ("parts",), ("seed",), ("source",), ("group_size",), ("parts", "head")]
    + [("config", key) for key in TOY.to_dict()]
    + [("parts", "block_000", key) for key in ("file", "n_bytes", "sha256")]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places, json_values)
def test_any_value_anywhere_gives_a_pack_or_input_error(pristine, tmp_path, place, value):
    data = json.loads((pristine / "pack.json").read_text())
    if place:
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
    else:
        data = value
    for name in part_names(TOY):
        if not (tmp_path / f"{name}.safetensors").exists():
            (tmp_path / f"{name}.safetensors").symlink_to(pristine / f"{name}.safetensors")
    (tmp_path / "pack.json").write_text(json.dumps(data))
    try:
        assert isinstance(open_pack(tmp_path), Pack)
    except InputError as error:
        assert str(error).isprintable()


def test_opening_imports_only_numpy_and_the_standard_library(pristine):
    code = (
        "import sys, pathlib; before = set(sys.modules); from memsim.weights.pack import open_pack;"
        f"open_pack(pathlib.Path({str(pristine)!r}));"
        "print(' '.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = {name for name in done.stdout.split() if name not in sys.stdlib_module_names}
    assert found - {"numpy", "memsim", "_distutils_hack"} == set()
