import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memsim.errors import InputError
from memsim.models.lora import LoraConfig, adapter_shapes
from memsim.weights.adapters import read_adapter, tensor_key, write_adapter
from toy_checkpoints import TOY

SOME = LoraConfig(rank=3, alpha=7.5, target_modules=("q_proj", "down_proj"))


def random_tensors(lora, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (block, name, rng.standard_normal(shape).astype(np.float32))
        for block in range(TOY.num_hidden_layers)
        for name, shape in adapter_shapes(TOY, lora).items()
    ]


def write(directory, lora=SOME, tensors=None):
    write_adapter(directory, random_tensors(lora) if tensors is None else tensors, TOY, lora, "toy")
    return directory


@pytest.mark.parametrize("lora", [SOME, LoraConfig(), LoraConfig(rank=1, alpha=16)])
def test_round_trip(tmp_path, lora):
    found, tensors = read_adapter(write(tmp_path / "new" / "adapter", lora), TOY)
    assert found == lora
    expected = random_tensors(lora)
    assert list(tensors) == [(block, name) for block, name, _ in expected]
    for block, name, values in expected:
        np.testing.assert_array_equal(tensors[block, name], values)
        assert not tensors[block, name].flags.writeable


def test_the_files_hold_peft_names_and_nothing_else(tmp_path):
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert set(tensors) == {
        f"base_model.model.model.layers.{block}.{module}.lora_{side}.weight"
        for block in range(2)
        for module in ("self_attn.q_proj", "mlp.down_proj")
        for side in "AB"
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 7.5, ["q_proj", "down_proj"])


@pytest.mark.parametrize("rank", [1, 3])
def test_peft_loads_it_and_computes_with_scaled_b_a(tmp_path, rank):
    """Logits of the adapted model equal those of a model whose weights are W + scale * B A."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    lora = LoraConfig(rank=rank, alpha=5.0)
    tensors = random_tensors(lora)
    write(tmp_path, lora, [(block, name, 0.1 * values) for block, name, values in tensors])
    config = transformers.Qwen2Config(
        vocab_size=77,
        hidden_size=40,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    base = transformers.Qwen2ForCausalLM(config).eval()
    ids = torch.arange(13)[None]
    with torch.no_grad():
        plain = base(ids).logits
        merged = transformers.Qwen2ForCausalLM(config).eval()
        merged.load_state_dict(base.state_dict())
        values = {(block, name): torch.from_numpy(0.1 * array) for block, name, array in tensors}
        for block, layer in enumerate(merged.model.layers):
            for name in TOY.projections():
                a, b = values[block, f"{name}.lora_A"], values[block, f"{name}.lora_B"]
                layer.get_submodule(name).weight += lora.alpha / rank * b @ a
        expected = merged(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, tmp_path)(ids).logits
    # Float32: the same sums in another order.
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-5)
    assert (adapted - plain).abs().max() > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_reads_what_peft_saves(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = transformers.Qwen2Config(
        vocab_size=77,
        hidden_size=40,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
    )
    options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "gate_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = peft.get_peft_model(transformers.Qwen2ForCausalLM(config), options).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    lora, tensors = read_adapter(tmp_path, TOY)
    assert lora == LoraConfig(4, 8.0, ("v_proj", "gate_proj"))
    state = peft.get_peft_model_state_dict(model)
    assert {tensor_key(*name) for name in tensors} == set(state)
    for name, values in tensors.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, state[tensor_key(*name)].float().numpy())


def test_unaligned_data_is_copied(tmp_path):
    path = write(tmp_path) / "adapter_model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    _, tensors = read_adapter(tmp_path, TOY)
    for block, name, values in random_tensors(SOME):
        assert tensors[block, name].flags.aligned
        np.testing.assert_array_equal(tensors[block, name], values)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (random_tensors(SOME)[:-1], "lora_B.weight is incomplete"),
        (random_tensors(SOME)[::-1], "is incomplete"),
        ([(0, "mlp.up_proj.lora_A", np.zeros((3, 40), np.float32))], "is not a tensor of this adapter"),
        ([(0, "self_attn.q_proj.lora_A", np.zeros((40, 3), np.float32))], "is not a tensor of this adapter"),
    ],
)
def test_a_failed_write_keeps_the_adapter_that_was_there(tmp_path, tensors, message):
    before = {path.name: path.read_bytes() for path in write(tmp_path).iterdir()}
    with pytest.raises(ValueError, match=message):
        write(tmp_path, SOME, tensors)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unwritable_directory_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot create .*/file/adapter: Not a directory"):
        write(tmp_path / "file" / "adapter")


CONFIGS = {
    "not LoRA": ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
    "rslora": ({"use_rslora": True}, "use_rslora = True is not supported"),
    "dora": ({"use_dora": True}, "use_dora = True"),
    "bias": ({"bias": "all"}, "bias = 'all'"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    "rank pattern": ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is not supported"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
    "rank": ({"r": "3"}, "r must be an integer, not '3'"),
    "rank 0": ({"r": 0}, "does not fit the model: --lora-rank 0 is below 1"),
    "rank above": ({"r": 41}, "does not fit the model: --lora-rank 41 is above"),
    "alpha": ({"lora_alpha": None}, "lora_alpha must be a positive number, not None"),
    "alpha 0": ({"lora_alpha": 0}, "does not fit the model: --lora-alpha"),
    "huge alpha": ({"lora_alpha": 10**400}, "lora_alpha must be a positive number"),
    "targets": ({"target_modules": ".*_proj"}, "target_modules must be a list of names"),
    "no targets": ({"target_modules": []}, "does not fit the model"),
    "odd target": ({"target_modules": ["q_proj", "lm_head"]}, "target_modules 'lm_head' is unknown"),
    "more targets": ({"target_modules": ["q_proj", "k_proj"]}, "has no tensor '.*layers.0.self_attn.k_proj.lora_A"),
    "fewer targets": ({"target_modules": ["q_proj"]}, "holds the unknown tensor '.*down_proj"),
    "another rank": ({"r": 4}, "'.*q_proj.lora_A.weight' is f32 .3, 40.; the model needs f32 .4, 40."),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_what_memsim_cannot_apply_is_refused(tmp_path, case):
    change, message = CONFIGS[case]
    path = write(tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_adapter(tmp_path, TOY)


def test_tensors_must_fit_the_model_and_be_numbers(tmp_path):
    write(tmp_path)
    with pytest.raises(InputError, match="has no tensor '.*layers.2.self_attn"):
        read_adapter(tmp_path, replace(TOY, num_hidden_layers=3))
    with pytest.raises(InputError, match="holds the unknown tensor '.*layers.1"):
        read_adapter(tmp_path, replace(TOY, num_hidden_layers=1))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = tensor_key(1, "mlp.down_proj.lora_B")
    tensors[key][3, 1] = np.nan
    save_file(tensors, path)
    with pytest.raises(InputError, match=f"'{key}' holds NaN or infinite values"):
        read_adapter(tmp_path, TOY)
    save_file(tensors | {key: tensors[key].astype(np.float64)}, path)
    with pytest.raises(InputError, match="is f64 .40, 3.; the model needs f32"):
        read_adapter(tmp_path, TOY)
    path.unlink()
    with pytest.raises(InputError, match="cannot read .*adapter_model.safetensors"):
        read_adapter(tmp_path, TOY)
