"""The model families: what a ``model_type`` fixes beyond the numbers in its ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """One ``model_type``.

    Attributes:
        norm: The op of every norm: ``rmsnorm``, or ``layernorm``, which has a bias.
        norms: The norms of a block: before attention, after it, before the MLP, after it; empty where there is none.
        norm_offset: What is added to a stored norm weight to make it the factor: Gemma's are 1 + w.
        qk_norm: Whether the heads of q and k are normed before they are rotated.
        activation: The op of the MLP.
        gated: Whether the MLP has a gate_proj, whose activation multiplies what up_proj makes.
        activation_key: The field of ``config.json`` that names its activation, and the only value it may have.
        biased: The projections that have a bias when ``attention_bias`` is set.
        always_biased: Whether they have one whatever the file says.
        first_position: The row of the table of learned positions that the first token gets; None is RoPE.
        scaled_embedding: Whether embeddings are multiplied by the root of hidden_size.
        window: Which blocks see a sliding window: ``none``, ``all``, the ``upper`` ones, or all but each n-th
            (``pattern``).
        prefix: What Hugging Face's names of tensors outside the blocks begin with.
        blocks: What its names of the modules of block {} begin with.
        names: Our name of a module -> Hugging Face's, where they differ.
        fields: Our name of a field -> that of its ``config.json``, where they differ.
        fixed: Fields that change what a model computes, with the only value that memsim has.
        defaults: Values of the fields that published files of this family leave out.
    """

    norm: str = "rmsnorm"
    norms: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")
    norm_offset: float = 0.0
    qk_norm: bool = False
    activation: str = "swiglu"
    gated: bool = True
    activation_key: tuple[str, str] = ("hidden_act", "silu")
    biased: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    always_biased: bool = False
    first_position: int | None = None
    scaled_embedding: bool = False
    window: str = "none"
    prefix: str = "model."
    blocks: str = "model.layers.{}."
    names: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "qwen2": Family(biased=("q_proj", "k_proj", "v_proj"), always_biased=True, window="upper"),
    "qwen3": Family(qk_norm=True, window="upper"),
    "llama": Family(defaults={"rope_theta": 10_000.0}),
    "mistral": Family(window="all", defaults={"rope_theta": 10_000.0}),
    "gemma3_text": Family(
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        norm_offset=1.0,
        qk_norm=True,
        activation="geglu",
        activation_key=("hidden_activation", "gelu_pytorch_tanh"),
        scaled_embedding=True,
        window="pattern",
        # Transformers' Gemma3TextConfig: the files of the larger models name only what differs from it.
        defaults={
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 131_072,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window": 4_096,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
    ),
    "opt": Family(
        norm="layernorm",
        activation="relu",
        activation_key=("activation_function", "relu"),
        gated=False,
        biased=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        always_biased=True,
        first_position=2,
        prefix="model.decoder.",
        blocks="model.decoder.layers.{}.",
        names={
            "norm": "final_layer_norm",
            "input_layernorm": "self_attn_layer_norm",
            "post_attention_layernorm": "final_layer_norm",
            "self_attn.o_proj": "self_attn.out_proj",
            "mlp.up_proj": "fc1",
            "mlp.down_proj": "fc2",
        },
        fields={"intermediate_size": "ffn_dim"},
        fixed={
            "do_layer_norm_before": True,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "_remove_final_layer_norm": False,
            "rms_norm_eps": 1e-5,  # of torch's LayerNorm
        },
        defaults={"rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    ),
}

DECODER = FAMILIES["llama"]
"""The family whose names most others share."""
