from dataclasses import replace

import numpy as np
import pytest

from memsim.errors import UsageError
from memsim.models.lora import ALL_PROJECTIONS, LoraConfig, adapter_shapes, check_lora, fill_initial, n_trainable
from memsim.models.presets import PRESETS

SMALL = PRESETS["qwen2.5-0.5b"]


def test_rank_8_on_all_projections_trains_the_published_counts():
    counts = {name: n_trainable(config, LoraConfig()) for name, config in PRESETS.items()}
    assert [counts[f"qwen2.5-{size}b"] for size in ("0.5", "1.5", "3")] == [4_399_104, 9_232_384, 14_966_784]
    assert [counts[f"gemma3-{size}b"] for size in ("1", "4")] == [6_522_880, 14_901_248]


@pytest.mark.parametrize("targets", [("q_proj",), ("v_proj", "down_proj"), ALL_PROJECTIONS])
def test_counts_and_shapes_are_those_of_peft(targets):
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = replace(
        SMALL, vocab_size=77, hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    options = {name: getattr(config, name) for name in (*names, "num_key_value_heads")}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**options))
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=list(targets), task_type="CAUSAL_LM"))
    lora = LoraConfig(3, 16.0, targets)
    shapes = {name: tuple(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(model).items()}
    assert shapes == {
        f"base_model.model.model.layers.{block}.{name}.weight": shape
        for block in range(2)
        for name, shape in adapter_shapes(config, lora).items()
    }
    assert n_trainable(config, lora) == model.get_nb_trainable_parameters()[0]


def test_scale_is_alpha_over_rank():
    assert LoraConfig(rank=4, alpha=2).scale == 0.5


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoraConfig(rank=0), "--lora-rank 0 is below 1"),
        (LoraConfig(rank=129), "--lora-rank 129 is above self_attn.k_proj, which is 128 x 896"),
        (LoraConfig(rank=897, target_modules=("q_proj",)), "--lora-rank 897 is above self_attn.q_proj"),
        (LoraConfig(alpha=0), "--lora-alpha 0 must be a positive number"),
        (LoraConfig(alpha=float("inf")), "--lora-alpha inf"),
        (LoraConfig(alpha=float("nan")), "--lora-alpha nan"),
        (LoraConfig(target_modules=()), "--target-modules \\(empty\\): choose from q_proj,"),
        (
            LoraConfig(target_modules=("q_proj", "lm_head")),
            "--target-modules lm_head: embed_tokens and lm_head carry no adapter, since their rows",
        ),
    ],
)
def test_adapters_that_cannot_work_are_refused(lora, message):
    with pytest.raises(UsageError, match=message):
        check_lora(lora, SMALL)


def test_targets_that_a_model_lacks_are_refused():
    with pytest.raises(UsageError, match="--target-modules gate_proj: opt has none of them"):
        check_lora(LoraConfig(target_modules=("gate_proj",)), PRESETS["opt-125m"])
    check_lora(LoraConfig(target_modules=("gate_proj", "up_proj")), PRESETS["opt-125m"])


def test_the_largest_rank_is_that_of_the_narrowest_target():
    check_lora(LoraConfig(rank=128), SMALL)
    check_lora(LoraConfig(rank=896, target_modules=("q_proj", "mlp.down_proj".rpartition(".")[2])), SMALL)


def test_initial_values_are_those_of_peft_in_distribution():
    a, b = np.empty((8, 896), np.float32), np.ones((896, 8), np.float32)
    fill_initial(a, "self_attn.q_proj.lora_A", 0, 3, 0)
    fill_initial(b, "self_attn.q_proj.lora_B", 0, 3, 1)
    bound = 896**-0.5
    assert not b.any()
    assert 0.99 * bound < np.abs(a).max() <= bound
    # Uniform: standard deviation bound / sqrt(3), within 1 / sqrt(2 n) = 0.8 % (one sigma) of it.
    assert a.std() == pytest.approx(bound / 3**0.5, rel=0.04)
    again, other = np.empty_like(a), np.empty_like(a)
    fill_initial(again, "self_attn.q_proj.lora_A", 0, 3, 0)
    np.testing.assert_array_equal(a, again)
    for key in ((1, 3, 0), (0, 4, 0), (0, 3, 2)):
        fill_initial(other, "self_attn.q_proj.lora_A", *key)
        assert not (a == other).all()
