import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.errors import InputError
from memsim.models.config import ModelConfig, config_from_dict
from memsim.models.presets import PRESETS, preset

SMALL = PRESETS["qwen2.5-0.5b"]


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
    return {key: value for key, value in (data | changes).items() if value is not None}


def test_presets_are_the_published_models():
    assert config_from_dict(hugging_face(), "config.json") == SMALL
    # Counts from the models' own pages: 0.49, 1.54 and 3.09 billion.
    assert [config.n_parameters() for config in PRESETS.values()] == [494_032_768, 1_543_714_304, 3_085_938_688]
    assert preset("Qwen2.5-3B") is PRESETS["qwen2.5-3b"]
    with pytest.raises(InputError, match="no model called 'qwen'; presets: qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-3b"):
        preset("qwen")


@pytest.mark.parametrize("config", PRESETS.values())
def test_own_description_round_trips(config):
    assert config_from_dict(json.loads(json.dumps(config.to_dict())), "pack.json") == config


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_as_transformers_does(tied):
    transformers = pytest.importorskip("transformers")
    options = {
        "vocab_size": 77,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "tie_word_embeddings": tied,
    }
    theirs = transformers.Qwen2Config(**options)
    ours = config_from_dict(theirs.to_dict(), "config.json")
    model = transformers.Qwen2ForCausalLM(theirs)
    assert ours.n_parameters() == sum(parameter.numel() for parameter in model.parameters())
    block = dict(model.model.layers[0].named_parameters())
    for name, shape in ours.projections().items():
        assert tuple(block[f"{name}.weight"].shape) == shape
        assert ours.has_bias(name) == (f"{name}.bias" in block)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, {"rope_theta": 5.0}),
        ({"rope_scaling": {"type": "default"}}, {}),
        ({"tie_word_embeddings": None}, {"tie_word_embeddings": False}),
        ({"num_key_value_heads": None}, {"num_key_value_heads": 14}),
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
        ({"use_sliding_window": True}, "use_sliding_window is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "RoPE scaling 'yarn' is not supported"),
        ({"rope_scaling": ["yarn"]}, "rope_parameters must be an object"),
        ({"hidden_size": None}, "c has no 'hidden_size'"),
        ({"hidden_size": 0}, "'hidden_size' must be a positive integer, not 0"),
        ({"hidden_size": 896.0}, "'hidden_size' must be a positive integer"),
        ({"vocab_size": True}, "'vocab_size' must be a positive integer"),
        ({"vocab_size": 2**31}, "'vocab_size' must be a positive integer"),
        ({"num_hidden_layers": -1}, "'num_hidden_layers' must be a positive integer"),
        ({"rms_norm_eps": 0}, "'rms_norm_eps' must be a positive number"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' must be a positive number"),
        ({"rope_theta": 10**400}, "'rope_theta' must be a positive number"),
        ({"rope_theta": float("inf")}, "'rope_theta' must be a positive number"),
        ({"rope_theta": None}, "'rope_theta' must be a positive number, not None"),
        ({"num_key_value_heads": 3}, "14 query heads cannot share 3 key-value heads"),
        ({"head_dim": 63}, "head_dim 63 is odd"),
        ({"hidden_size": 4}, "'head_dim' must be a positive integer, not 0"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        config_from_dict(hugging_face(**changes), "c")


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
values |= st.dictionaries(st.sampled_from(["rope_type", "type", "rope_theta"]), values, max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*hugging_face(), "head_dim", "rope_parameters", "rope_scaling"]), values))
def test_any_values_give_a_configuration_or_input_error(changes):
    with suppress(InputError):
        assert isinstance(config_from_dict(hugging_face() | changes, "c"), ModelConfig)
