import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.errors import InputError
from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict
from memsim.models.family import FAMILIES
from memsim.models.parts import matrices, part_names, vectors
from memsim.models.presets import PRESETS, preset
from memsim.models.rope_tables import rope_tables
from memsim.weights.readers.hugging_face import hugging_face_name
from toy_families import FAMILY_CHANGES, family_config

null = object()  # in a file; None is a field that it does not have
SMALL = PRESETS["qwen2.5-0.5b"]
MLX = {"group_size": 64, "bits": 4}
LLAMA3 = PRESETS["llama-3.2-1b"].to_dict()["rope_scaling"]
TOYS = [family_config(name) for name in FAMILY_CHANGES]


def hugging_face(**changes):
    """Return the fields of Qwen2.5-0.5B's config.json, as published."""
    data = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    data = {key: value for key, value in (data | changes).items() if value is not None}
    return json.loads(json.dumps(data, default=lambda value: None))


def test_presets_are_the_published_models():
    assert config_from_dict(hugging_face(), "config.json") == SMALL
    assert preset("Qwen2.5-3B") is PRESETS["qwen2.5-3b"]
    with pytest.raises(InputError, match="no model called 'qwen'; presets: qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-3b"):
        preset("qwen")


@pytest.mark.parametrize("config", [*PRESETS.values(), *TOYS])
def test_own_description_round_trips(config):
    assert config_from_dict(json.loads(json.dumps(config.to_dict())), "pack.json", foreign=False) == config


def theirs(config):
    """Return transformers' configuration object of ``config``, by way of the spelling of published files."""
    fields = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "layer_types")}
    if config.layer_types and config.family.window == "upper":
        fields |= {"use_sliding_window": True, "max_window_layers": config.layer_types.index("sliding_attention")}
    if config.family.window == "all":
        fields.setdefault("sliding_window", None)
    if config.family.window == "pattern":
        fields["sliding_window_pattern"] = config.layer_types.index("full_attention") + 1
    fields |= {key: fields.pop(ours) for ours, key in config.family.fields.items()}
    fields["word_embed_proj_dim"] = config.hidden_size  # of OPT
    return pytest.importorskip("transformers").AutoConfig.for_model(config.model_type, **fields)


@pytest.mark.parametrize("config", [*PRESETS.values(), *TOYS])
def test_transformers_spelling_gives_the_same_configuration(config):
    object_ = theirs(config)
    assert config_from_dict(json.loads(object_.to_json_string(use_diff=False)), "config.json") == config
    if config.family.window in ("upper", "pattern"):
        assert object_.layer_types == [config.layer_type(index) for index in range(config.num_hidden_layers)]


@pytest.mark.parametrize("config", [*PRESETS.values(), *TOYS, replace(TOYS[-2], num_labels=3)])
def test_every_parameter_of_transformers_model_is_known(config):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from oracle import model_class

    with torch.device("meta"):
        model = model_class(config).from_config(theirs(config))
    assert config.n_parameters() == sum(parameter.numel() for parameter in model.parameters())
    shapes = {}
    for part in part_names(config):
        tensors = {f"{name}.weight": shape for name, shape in matrices(config, part).items()} | vectors(config, part)
        shapes |= {hugging_face_name(part, name, config.family): shape for name, shape in tensors.items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("config", [config for config in TOYS if config.ropes()])
def test_rope_tables_are_those_of_transformers(config):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_config(theirs(config))
    positions = torch.arange(300)[None]
    for kind in dict.fromkeys(map(config.layer_type, range(config.num_hidden_layers))):
        kinds = [kind] if config.rope_local_base_freq else []
        cos, sin = model.model.rotary_emb(torch.zeros(1), positions, *kinds)
        ours = rope_tables(config.ropes()[config.rope_of(kind)], config.head_dim, 300)
        # An angle of 300 that is rounded differently in its last bit is off by 1.5e-5.
        for table, want in zip(ours, (cos, sin), strict=True):
            np.testing.assert_allclose(table, want[0, :, : config.head_dim // 2], atol=4e-5)


def test_published_files_may_leave_fields_out():
    # As in google/gemma-3-4b-pt and lmsys/vicuna-7b-v1.5.
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    assert config_from_dict({"model_type": "gemma3", "text_config": text}, "c") == replace(
        PRESETS["gemma3-4b"], multimodal_type="gemma3"
    )
    vicuna = {
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    }
    assert config_from_dict(vicuna, "c") == PRESETS["vicuna-7b"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, {"rope_theta": 5.0}),
        ({"rope_scaling": {"type": "default"}}, {}),
        ({"tie_word_embeddings": None}, {"tie_word_embeddings": False}),
        ({"num_key_value_heads": null}, {"num_key_value_heads": 14}),
        ({"rms_norm_eps": None, "rope_theta": None}, {"rope_theta": 10_000.0}),
        ({"partial_rotary_factor": null, "rope_scaling": {"rope_type": null}, "sliding_window": 0}, {}),
        ({"max_position_embeddings": null}, {}),  # of Qwen2Config, as it happens
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, {}),
        ({"quantization": MLX, "quantization_config": MLX}, {}),  # as MLX writes it
        ({"torch_dtype": "bfloat16", "_attn_kind": 1, "notes": {"by": "me"}, "logit_scale": 1.0, "moe_layers": []}, {}),
        ({"head_dim": 32}, {"head_dim": 32}),
    ],
)
def test_spellings_and_defaults(changes, expected):
    assert config_from_dict(hugging_face(**changes), "c") == replace(SMALL, **expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "c: model_type 'gpt2' is not supported; memsim runs: qwen2"),
        ({"model_type": ["qwen2"]}, "is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"use_sliding_window": 1}, "'use_sliding_window' must be true or false, not 1"),
        ({"use_sliding_window": True, "max_window_layers": 3, "sliding_window": null}, "c has no 'sliding_window'"),
        ({"layer_types": ["sliding_attention"] * 24}, "has sliding_attention, but use_sliding_window is false"),
        ({"layer_types": ["full_attention"]}, "'layer_types' must be a list of 24, each full_attention or sliding"),
        ({"layer_types": ["linear"] * 24}, "'layer_types' must be a list of 24"),
        ({"num_hidden_layers": 10_001}, "10001 layers are over the 10000 that memsim takes"),
        ({"model_type": "gemma3", "text_config": []}, "'text_config' must be an object, not a list"),
        (
            {"model_type": "gemma3_text", "hidden_act": None, "architectures": None, "hidden_activation": "gelu"},
            "hidden_activation 'gelu' is not supported",
        ),
        (
            {"model_type": "gemma3_text", "hidden_act": None, "final_logit_softcapping": 30.0},
            "final_logit_softcapping 30.0 is not sup",
        ),
        (
            {"model_type": "gemma3_text", "hidden_act": None, "attn_logit_softcapping": 5},
            "attn_logit_softcapping 5 is not supported",
        ),
        (
            {"model_type": "gemma3_text", "hidden_act": None, "use_bidirectional_attention": True},
            "use_bidirectional_attention True is",
        ),
        (
            {"model_type": "gemma3_text", "hidden_act": None, "sliding_window_pattern": 0},
            "'sliding_window_pattern' must be a positive",
        ),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias True is not supported"),
        ({"model_type": "llama", "attention_bias": "yes"}, "'attention_bias' must be true or false, not 'yes'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, "'longrope' is not supported; memsim has linear, "),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 4}}, "rope_type is 'linear', and its type"),
        ({"rope_scaling": {"factor": 4}}, "have a factor and no rope_type"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1]}}, "'mrope_section' among the settings of RoPE"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 1000000.0, and rope_theta 5.0; take one out"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2}},
            "rope_parameters and rope_scaling say different things",
        ),
        ({"is_causal": False}, "is_causal False is not supported"),
        (
            {"architectures": ["BitNetForCausalLM"]},
            "the architecture 'BitNetForCausalLM' has no head that memsim knows",
        ),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "train its base model with --scheme head"),
        ({"logit_scale": 0.5}, "'logit_scale' 0.5 is not known to memsim, which cannot tell what it changes"),
        ({"num_experts": 8}, "'num_experts' 8 is not known"),
        (
            {"quantization": MLX, "quantization_config": MLX | {"bits": 8}},
            "quantization and quantization_config differ",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are quantised by 'awq'"),
        ({"num_key_value_heads": None}, "14 query heads cannot share 32"),  # of Qwen2Config
        ({"rope_scaling": ["yarn"]}, "'rope_scaling' must be an object, not a list"),
        ({"rope_scaling": {"type": "linear"}}, "'factor' must be a number from .*, not None"),
        ({"rope_scaling": {"type": "llama3", "factor": 8}}, "'low_freq_factor' must be a number from "),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "'low_freq_factor' 1.0 must be below 'high_freq_fact"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"hidden_size": None}, "c has no 'hidden_size'"),
        ({"hidden_size": 0}, "'hidden_size' must be a positive integer, not 0"),
        ({"hidden_size": 896.0}, "'hidden_size' must be a positive integer"),
        ({"vocab_size": True}, "'vocab_size' must be a positive integer"),
        ({"vocab_size": 2**31}, "'vocab_size' must be a positive integer"),
        ({"num_hidden_layers": -1}, "'num_hidden_layers' must be a positive integer"),
        ({"rms_norm_eps": 0}, "'rms_norm_eps' must be a number from "),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' must be a number from "),
        ({"rms_norm_eps": 9e8}, "c: 'rms_norm_eps' must be a number from 1e-30 to 1, not 900000000.0"),
        ({"rms_norm_eps": 5e-324}, "c: 'rms_norm_eps' must be a number from 1e-30 to 1, not 5e-324"),
        ({"rope_theta": 5e-324}, r"c: 'rope_theta' must be a number from 1 to 1e\+15, not 5e-324"),
        ({"rope_scaling": {"type": "linear", "factor": 5e-324}}, "'factor' must be a number from 0.001 to"),
        ({"rope_theta": 10**400}, "'rope_theta' must be a number from "),
        ({"rope_theta": float("inf")}, "'rope_theta' must be a number from "),
        ({"num_key_value_heads": 3}, "14 query heads cannot share 3 key-value heads"),
        ({"head_dim": 63}, "head_dim 63 is odd"),
        ({"hidden_size": 4}, "'head_dim' must be a positive integer, not 0"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        config_from_dict(hugging_face(**changes) if "architectures" in changes else bare(**changes), "c")


def bare(**changes):
    """Return the same fields, but for the architecture: these are of several families."""
    data = hugging_face(**changes)
    return {key: value for key, value in data.items() if key != "architectures"} | {
        key: value for key, value in changes.items() if isinstance(value, float) or value == 10**400
    }


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
ropes = st.dictionaries(st.sampled_from(["type", "rope_theta", *LLAMA3]), values | st.sampled_from(["llama3"]))
values |= ropes | st.dictionaries(st.sampled_from(["full_attention", "sliding_attention"]), values | ropes)
names = [*hugging_face(), "head_dim", "rope_parameters", "rope_scaling", "layer_types", "sliding_window"]
names += ["sliding_window_pattern", "max_window_layers", "query_pre_attn_scalar", "text_config", "attention_bias"]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*FAMILIES, "gemma3"]), st.dictionaries(st.sampled_from(names), values))
def test_any_values_give_a_configuration_or_input_error(model_type, changes):
    with suppress(InputError):
        data = hugging_face(model_type=model_type) | changes
        assert isinstance(config_from_dict(data | {"text_config": data}, "c"), ModelConfig)
