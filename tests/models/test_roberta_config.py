import json

import pytest

from memsim.errors import InputError, UsageError
from memsim.models.config_file import config_from_dict
from memsim.models.lora import LoraConfig, check_lora, with_our_names
from memsim.models.presets import PRESETS

BASE = PRESETS["roberta-base"]


def published(**changes):
    """Return the fields of FacebookAI/roberta-base's config.json, as published."""
    data = {
        "architectures": ["RobertaForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "model_type": "roberta",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "vocab_size": 50265,
    }
    return {key: value for key, value in (data | changes).items() if value is not None}


def test_the_published_file_is_the_preset():
    config = config_from_dict(published(), "config.json")
    assert config == BASE
    assert config.n_parameters() == 124_697_433  # as transformers counts RobertaForMaskedLM
    assert (config.longest_sequence, config.position_table()) == (512, (514, 768))
    assert config_from_dict(json.loads(json.dumps(config.to_dict())), "pack.json") == config


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, 2),  # transformers writes no names for two classes
        ({"id2label": {"0": "no", "1": "maybe", "2": "yes"}}, 3),
        ({"num_labels": 5}, 5),
    ],
)
def test_a_classifier_has_as_many_classes_as_its_file_says(changes, labels):
    config = config_from_dict(published(architectures=["RobertaForSequenceClassification"], **changes), "c")
    assert config.num_labels == labels
    assert config_from_dict(config.to_dict(), "pack.json") == config


def test_names_of_labels_do_not_make_a_masked_model_a_classifier():
    assert config_from_dict(published(id2label={"0": "a", "1": "b", "2": "c"}), "c").num_labels is None


CLASSIFIER = ["RobertaForSequenceClassification"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["RobertaModel"]}, "the architecture 'RobertaModel' has no head that memsim knows"),
        (
            {"architectures": ["RobertaForTokenClassification"]},
            "it has RobertaForMaskedLM, RobertaForSequenceClassification",
        ),
        ({"architectures": [["x"]]}, "'architectures' must be a list of names, not a list"),
        ({"architectures": CLASSIFIER, "num_labels": 1}, "1 labels; a classifier has 2 to 100,000"),
        ({"architectures": CLASSIFIER, "num_labels": 10**8}, "100000000 labels; a classifier has"),
        ({"architectures": CLASSIFIER, "problem_type": "regression"}, "problem_type 'regression' is not supported"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' is not supported; roberta uses 'gelu'"),
        ({"pad_token_id": 0}, "pad_token_id 0 is not supported"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"max_position_embeddings": 2}, "'max_position_embeddings' 2 leaves no position"),
        ({"type_vocab_size": 0}, "'type_vocab_size' must be a positive integer"),
    ],
)
def test_what_memsim_has_not_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        config_from_dict(published(**changes), "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        (("query", "value"), ("q_proj", "v_proj")),
        (("dense",), ("o_proj", "up_proj", "down_proj")),
        (("key", "k_proj", "down_proj"), ("k_proj", "down_proj")),
    ],
)
def test_targets_may_have_the_names_that_hugging_face_gives_them(names, ours):
    lora = with_our_names(LoraConfig(target_modules=names), BASE)
    assert lora.target_modules == ours
    check_lora(lora, BASE)


def test_names_of_another_family_stay_and_are_refused():
    lora = with_our_names(LoraConfig(target_modules=("query",)), PRESETS["qwen2.5-0.5b"])
    with pytest.raises(UsageError, match="--target-modules query: choose from q_proj"):
        check_lora(lora, PRESETS["qwen2.5-0.5b"])
