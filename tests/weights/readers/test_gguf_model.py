"""Whole GGUF files against transformers' own reader of them."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM

from gguf_files import write_gguf
from memsim.errors import InputError
from memsim.models.config_file import config_from_dict
from memsim.weights.cache import find_model
from memsim.weights.pack import open_pack
from memsim.weights.packing import pack_checkpoint
from memsim.weights.readers.formats import open_source
from memsim.weights.readers.gguf_model import open_gguf
from memsim.weights.tensor_file import map_file, view
from oracle import dequantized, reference_config
from toy_checkpoints import TOY, naive_dequantized, silent, source_tensors
from toy_families import family_config

# Rows that no panel of 16 divides (77 tokens), columns that blocks of 32 divide but not groups of 64.
CONFIG = replace(TOY, hidden_size=96, intermediate_size=160, num_attention_heads=6, num_key_value_heads=2, head_dim=16)
UNTIED = replace(CONFIG, tie_word_embeddings=False)


def toy_gguf(path, config=CONFIG, kind=Kind.F32, **changes):
    return write_gguf(path, "qwen2", config.to_dict(), source_tensors(config), lambda name: kind, **changes)


def read_all(checkpoint):
    """Return every tensor of an opened checkpoint by Hugging Face's name."""
    tensors = {}
    for (_, name), tensor in checkpoint.tensors.items():
        with tensor.open() as reader:
            values = reader.read(0, tensor.rows[0]).values
        tensors[tensor.name] = values if name.endswith("proj.weight") or values.shape[0] > 1 else values[0]
    return tensors


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1])
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_every_tensor_is_that_of_transformers(tmp_path, kind, config):
    path = toy_gguf(tmp_path / "toy.gguf", config, kind)
    checkpoint = open_gguf(path)
    assert (checkpoint.config, checkpoint.eos_token_id) == (config, 3)
    assert {tensor.stored for tensor in checkpoint.tensors.values()} == {"f32", kind.name.lower()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    found, state = read_all(checkpoint), model.state_dict()
    assert set(found) == {name for name in state if name != "lm_head.weight" or not config.tie_word_embeddings}
    for name, values in found.items():
        np.testing.assert_array_equal(values, state[name].numpy(), err_msg=name)


FAMILIES = {
    "llama": {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "llama-linear": {},
    "mistral": {},
    "qwen3": {},
    "gemma3_text": {"query_pre_attn_scalar": 32},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back_from_llama_cpps_conventions(tmp_path, name):
    # 64 columns, so that Q4_0 fits; the rest as the toys have it.
    config = config_from_dict(family_config(name).to_dict() | {"hidden_size": 64} | FAMILIES[name], name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(reference_config(config))
    for parameter in model.parameters():  # norms and biases start as ones and zeros
        torch.nn.init.normal_(parameter)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]

    def kind_of(stored):
        return Kind.Q4_0 if "attn_q.weight" in stored or "attn_k.weight" in stored else Kind.F32

    path = write_gguf(tmp_path / "toy.gguf", config.model_type, config.to_dict(), state, kind_of)
    checkpoint = open_gguf(path)
    assert checkpoint.config == config
    found = read_all(checkpoint)
    assert set(found) == set(state)
    for name, values in state.items():
        if "q_proj.weight" in name or "k_proj.weight" in name:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, Kind.Q4_0), Kind.Q4_0)
        if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
            values = values + np.float32(1)  # a pack holds the factor
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert pack_checkpoint(path, tmp_path / "out", 32, silent).pack.config == config


def test_q4_0_survives_bit_for_bit(tmp_path):
    pack = pack_checkpoint(toy_gguf(tmp_path / "toy.gguf", kind=Kind.Q4_0), tmp_path / "out", 32, silent)
    assert {error.original for error in pack.errors} == {"q4_0"}
    assert (pack.relative_error, max(error.max_error for error in pack.errors)) == (0, 0)
    part = pack.pack.part("block_001")
    mapped = map_file(part.path)
    q = view(mapped, part.tensors["self_attn.k_proj.q"])
    scales = view(mapped, part.tensors["self_attn.k_proj.scales"])
    weights = source_tensors(CONFIG)["model.layers.1.self_attn.k_proj.weight"]
    blocks = gguf.quants.quantize(weights, Kind.Q4_0).reshape(32, 3, 18)
    assert (blocks[:, :, 1] >= 128).any()  # scales below 0, which memsim itself never makes
    for row in range(32):
        for group in range(3):
            block = blocks[row, group].tobytes()
            assert scales[group, row].tobytes() == block[:2]
            for column in range(32):
                stored = block[2 + column % 16] >> (4 * (column // 16)) & 15
                dword = int(q[row // 16, (32 * group + column) // 8, row % 16])
                assert ((dword >> (4 * (column % 8)) & 15) ^ 8) == stored


def test_q4_0_in_groups_of_64_is_quantised_anew(tmp_path):
    path = toy_gguf(tmp_path / "toy.gguf", kind=Kind.Q4_0)
    report = pack_checkpoint(path, tmp_path / "out", 64, silent)
    assert 0.05 < report.relative_error < 0.15
    originals = read_all(open_gguf(path))
    for name, values in dequantized(report.pack).items():
        expected = naive_dequantized(originals[name], 64) if values.ndim == 2 else originals[name]
        np.testing.assert_array_equal(values.numpy(), expected, err_msg=name)


def random_q6_k(n_rows, n_columns):
    """Return random Q6_K bytes: low bits, high bits, int8 scales, and a float16 scale that is a number."""
    blocks = np.random.default_rng(4).integers(0, 256, (n_rows * n_columns // 256, 210), np.uint8)
    blocks[:, 208:] = (
        np.random.default_rng(5).uniform(1e-4, 1e-3, len(blocks)).astype("<f2").view(np.uint8).reshape(-1, 2)
    )
    return blocks.reshape(n_rows, -1)


def test_a_q6_k_embedding_is_quantised_anew(tmp_path):
    config = replace(CONFIG, hidden_size=256)
    stored = random_q6_k(77, 256)
    path = toy_gguf(tmp_path / "toy.gguf", config, Kind.Q4_0, raw={"token_embd.weight": stored})
    report = pack_checkpoint(path, tmp_path / "out", 32, silent)
    lost = {error.name: error.relative_error for error in report.errors}
    assert 0.02 < lost.pop("model.embed_tokens.weight") < 0.15
    assert set(lost.values()) == {0}
    expected = naive_dequantized(gguf.quants.dequantize(stored, Kind.Q6_K), 32)
    np.testing.assert_array_equal(dequantized(report.pack)["model.embed_tokens.weight"].numpy(), expected)


def test_find_model_packs_a_file_once_for_each_state_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "cache"))
    path = toy_gguf(tmp_path / "Toy-1B.Q4_0.gguf", kind=Kind.Q4_0)
    pack, name = find_model(str(path), silent)
    assert (name, pack.source, pack.tokenizer, pack.config) == ("Toy-1B.Q4_0.gguf", "packed", None, CONFIG)
    calls = []
    assert find_model(str(path), lambda *call: calls.append(call))[0] == pack
    assert calls == []
    (tmp_path / "tokenizer.json").write_text("{}")
    again = find_model(str(path), silent)[0]
    assert again.tokenizer == again.directory / "tokenizer.json"
    assert open_pack(again.directory).model_hash == pack.model_hash


def test_missing_unknown_and_misshapen_tensors_are_refused(tmp_path):
    tensors = source_tensors(CONFIG)
    fields = CONFIG.to_dict()
    lacking = {name: values for name, values in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(InputError, match=r"has no tensor 'blk.1.ffn_up.weight'; is it a whole qwen2\?"):
        open_source(write_gguf(tmp_path / "a.gguf", "qwen2", fields, lacking))
    with pytest.raises(InputError, match="'blk.0.attn_q.weight' has shape .96, 96., but its metadata imply .64, 96."):
        open_gguf(write_gguf(tmp_path / "b.gguf", "qwen2", fields | {"num_attention_heads": 4}, tensors))
    with pytest.raises(InputError, match="holds the tensor 'blk.0.extra', which qwen2 does not have"):
        open_gguf(write_gguf(tmp_path / "c.gguf", "qwen2", fields, tensors, **{"blk.0.extra": np.zeros(3, np.float32)}))
    with pytest.raises(InputError, match="names 99 layers, but the files hold 26 tensors"):
        open_gguf(write_gguf(tmp_path / "d.gguf", "qwen2", fields | {"num_hidden_layers": 99}, tensors))
    with pytest.raises(InputError, match="has no matrix token_embd.weight"):
        open_gguf(write_gguf(tmp_path / "e.gguf", "qwen2", fields, {"model.embed_tokens.weight": np.zeros(3, "f4")}))


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q8_0, Kind.Q4_0])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # of the quantiser of the test
def test_nan_weights_are_refused_and_leave_nothing(tmp_path, kind):
    tensors = source_tensors(CONFIG)
    tensors["model.layers.0.mlp.up_proj.weight"][5, 7] = np.nan
    path = write_gguf(tmp_path / "toy.gguf", "qwen2", CONFIG.to_dict(), tensors, lambda name: kind)
    with pytest.raises(InputError, match="model.layers.0.mlp.up_proj.weight holds NaN or infinite weights"):
        pack_checkpoint(path, tmp_path / "out", 32, silent)
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy.gguf"]
