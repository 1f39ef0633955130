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
        post_norm: Whether the norms after attention and MLP are of the sum with the block's input, not of what is
            added to it.
        causal: Whether a token sees only itself and those before it; otherwise all that are no padding.
        norm_offset: What is added to a stored norm weight to make it the factor: Gemma's are 1 + w.
        qk_norm: Whether the heads of q and k are normed before they are rotated.
        activation: The op of the MLP.
        gated: Whether the MLP has a gate_proj, whose activation multiplies what up_proj makes.
        activation_key: The field of ``config.json`` that names its activation, and the only value it may have.
        biased: The projections that have a bias when ``attention_bias`` is set.
        always_biased: Whether they have one whatever the file says.
        first_position: The row of the table of learned positions that the first token gets; None is RoPE.
        extra_positions: The rows that this table has beyond ``max_position_embeddings``.
        normed_embedding: Whether embeddings have a token type added, the first one, and are normed.
        transformed_head: Whether the head begins with a matrix, an activation and a norm, and has a bias.
        scaled_embedding: Whether embeddings are multiplied by the root of hidden_size.
        window: Which blocks see a sliding window: ``none``, ``all``, the ``upper`` ones, or all but each n-th
            (``pattern``).
        ends: The tokens between which every sequence stands, if it must.
        prefix: What Hugging Face's names of tensors outside the blocks begin with.
        blocks: What its names of the modules of block {} begin with.
        names: Our name of a module -> Hugging Face's, where they differ.
        fields: Our name of a field -> that of its ``config.json``, where they differ.
        fixed: Fields that change what a model computes, with the only value that memsim has.
        defaults: Values of fields that a file may leave out: those of transformers' class.
        architectures: The classes that compute what memsim does for this ``model_type``.
    """

    norm: str = "rmsnorm"
    norms: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")
    norm_offset: float = 0.0
    post_norm: bool = False
    causal: bool = True
    qk_norm: bool = False
    activation: str = "swiglu"
    gated: bool = True
    activation_key: tuple[str, str] = ("hidden_act", "silu")
    biased: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    always_biased: bool = False
    first_position: int | None = None
    extra_positions: int = 0
    normed_embedding: bool = False
    transformed_head: bool = False
    scaled_embedding: bool = False
    window: str = "none"
    ends: tuple[int, int] | None = None
    prefix: str = "model."
    blocks: str = "model.layers.{}."
    names: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()


_ROPE = {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6}
_QWEN = {
    "max_position_embeddings": 32_768,
    "max_window_layers": 28,
    "num_key_value_heads": 32,
    "sliding_window": 4_096,
}

FAMILIES = {
    "qwen2": Family(
        biased=("q_proj", "k_proj", "v_proj"),
        always_biased=True,
        window="upper",
        defaults=_ROPE | _QWEN,
        architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    ),
    "qwen3": Family(
        qk_norm=True,
        window="upper",
        defaults=_ROPE | _QWEN | {"head_dim": 128},
        architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    ),
    "llama": Family(
        defaults=_ROPE | {"max_position_embeddings": 2_048},
        architectures=("LlamaForCausalLM", "LlamaModel", "LLaMAForCausalLM"),  # the last: its first name, of 2023
    ),
    "mistral": Family(
        window="all",
        fixed={"attention_bias": False},  # transformers' class has none, and drops those of the file
        defaults=_ROPE | {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4_096},
        architectures=("MistralForCausalLM", "MistralModel"),
    ),
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
        # The files of the larger models name only what differs from it.
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
        architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
    ),
    "opt": Family(
        norm="layernorm",
        activation="relu",
        activation_key=("activation_function", "relu"),
        gated=False,
        biased=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        always_biased=True,
        first_position=2,
        extra_positions=2,
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
        defaults={"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 2_048},
        architectures=("OPTForCausalLM", "OPTModel"),
    ),
    "roberta": Family(
        norm="layernorm",
        norms=("", "post_attention_layernorm", "", "post_mlp_layernorm"),
        post_norm=True,
        causal=False,
        activation="gelu",
        activation_key=("hidden_act", "gelu"),
        gated=False,
        biased=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        always_biased=True,
        first_position=2,  # pad_token_id + 1: padding has a position of its own
        normed_embedding=True,
        transformed_head=True,
        ends=(0, 2),
        prefix="roberta.",
        blocks="roberta.encoder.layer.{}.",
        names={
            "embed_tokens": "embeddings.word_embeddings",
            "embed_positions": "embeddings.position_embeddings",
            "embed_types": "embeddings.token_type_embeddings",
            "embed_norm": "embeddings.LayerNorm",
            "self_attn.q_proj": "attention.self.query",
            "self_attn.k_proj": "attention.self.key",
            "self_attn.v_proj": "attention.self.value",
            "self_attn.o_proj": "attention.output.dense",
            "post_attention_layernorm": "attention.output.LayerNorm",
            "mlp.up_proj": "intermediate.dense",
            "mlp.down_proj": "output.dense",
            "post_mlp_layernorm": "output.LayerNorm",
            "head_dense": "lm_head.dense",
            "norm": "lm_head.layer_norm",
        },
        fields={"rms_norm_eps": "layer_norm_eps"},
        fixed={
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        defaults={
            "vocab_size": 50_265,
            "rms_norm_eps": 1e-12,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "tie_word_embeddings": True,
        },
        architectures=("RobertaForMaskedLM", "RobertaForSequenceClassification"),
    ),
}

DECODER = FAMILIES["llama"]
"""The family whose names most others share."""
