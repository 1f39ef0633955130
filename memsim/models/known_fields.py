"""Which fields of a ``config.json`` change what a model computes: those that memsim lacks are refused by name.

A field is used (``config_file`` and ``rope_file`` read it), fixed (it may only have the value that memsim has), without
effect on what is computed (`NEUTRAL`), or unknown. Of unknown ones, those whose name speaks of the mathematics of a
model are refused, unless their value says that they are off: nobody can tell what they change. The others are notes of
the programs that wrote the file.
"""

import re
from collections.abc import Mapping
from typing import Any

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.models.family import Family

# Read by `config_file`, `rope_file` and the readers of weights.
_USED = frozenset((
    "architectures", "attention_bias", "head_dim", "hidden_size", "id2label", "intermediate_size", "label2id",
    "layer_types", "max_position_embeddings", "max_window_layers", "model_type", "multimodal_type",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "num_labels",
    "original_max_position_embeddings", "problem_type", "quantization", "quantization_config",
    "query_pre_attn_scalar", "rms_norm_eps", "rope_local_base_freq", "rope_parameters", "rope_scaling",
    "rope_theta", "sliding_window", "sliding_window_pattern", "tie_word_embeddings", "type_vocab_size",
    "use_sliding_window", "vocab_size", "word_embed_proj_dim",
))  # fmt: skip
# Of these the names speak of mathematics, but they change nothing that is computed here: how it is computed
# (pretraining_tp sums in another order), how generating goes, what a fresh model begins with, dropout, which memsim
# does not have and evaluation never has, and, under a leading underscore, what transformers keeps for itself.
NEUTRAL = frozenset((
    "activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "attn_implementation",
    "attn_pdrop", "bad_words_ids", "cache_implementation", "chunk_size_feed_forward", "classifier_dropout",
    "dropout", "embd_pdrop", "embedding_dropout", "encoder_no_repeat_ngram_size", "flash_attn", "fused_mlp",
    "hidden_dropout", "hidden_dropout_prob", "init_std", "initializer_range", "layerdrop", "mlp_dropout",
    "output_attentions", "output_hidden_states", "pretraining_tp", "resid_pdrop", "tie_encoder_decoder",
    "use_cache", "use_flash_attn", "use_flash_attention", "use_flash_attention_2", "use_fused_rms_norm",
    "use_fused_cross_entropy",
))  # fmt: skip
# The only value of a field that memsim has, whatever the family; missing and null are fine.
_FIXED: dict[str, Any] = {
    "add_cross_attention": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "is_causal": True,
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "use_bidirectional_attention": False,
}
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_MATHEMATICS = re.compile(
    "act_fn|activation|alibi|attention|attn|bidirectional|bias|bitnet|causal|clip|chunk|conv|cross_|embed|expert|ffn|"
    "gate|gated|head|hidden_|kv|layer|logit|lora|mask|mlp|moe|mscale|multiplier|norm|parallel|qk|quant|residual|rope|"
    "rotary|router|scale|scaling|shared|softcap|sparse|window"
)
_OFF: tuple[object, ...] = (0, "", "none", [], {})
_ON_AT_ONE = re.compile("multiplier|scale|scaling|factor")  # what multiplies changes nothing at 1


def refuse_unknown(data: Mapping[str, Any], family: Family, where: str) -> None:
    """Refuse what memsim does not compute.

    Args:
        data: The fields that have a value, of an untrusted file.
        family: What its ``model_type`` fixes.
        where: What error messages call the file.

    Raises:
        InputError: A quantisation, an architecture of another kind, a fixed field of another value, or an unknown one
            that speaks of the mathematics of a model.
    """
    _refuse_quantization(data, where)
    for key in _ACTIVATIONS:  # some files have two; transformers reads one
        if data.get(key, family.activation_key[1]) != family.activation_key[1]:
            uses = f"{data['model_type']} uses {family.activation_key[1]!r}"
            raise InputError(f"{where}: {key} {shown(data[key])} is not supported; {uses}")
    fixed = {**_FIXED, **family.fixed}
    for key, neutral in fixed.items():
        if data.get(key, neutral) != neutral:
            raise InputError(f"{where}: {key} {shown(data[key])} is not supported")
    if data.get("word_embed_proj_dim", data.get("hidden_size")) != data.get("hidden_size"):
        raise InputError(f"{where}: word_embed_proj_dim {shown(data['word_embed_proj_dim'])} is not supported")
    _refuse_architecture(data, family, where)
    used = (*_ACTIVATIONS, *family.fields.values(), *family.defaults, *fixed)
    for key, value in data.items():
        known = key in _USED or key in NEUTRAL or key in used or key.startswith("_")
        if not known and _MATHEMATICS.search(key.lower()) and not _is_off(key, value):
            raise InputError(
                f"{where}: {shown(key)} {shown(value)} is not known to memsim, which cannot tell what it changes; "
                f"where it changes nothing, take it out of a copy of the file"
            )


def _is_off(key: str, value: Any) -> bool:
    """Return whether a field's value says that what it names is not there."""
    if value is None or value is False:
        return True
    return value is not True and value in ((1,) if _ON_AT_ONE.search(key.lower()) else _OFF)


def _refuse_quantization(data: Mapping[str, Any], where: str) -> None:
    """Refuse weights that another program quantised, by its name; MLX's are read."""
    found = data.get("quantization_config")
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if method is None and isinstance(found, Mapping) and {"bits", "group_size"} <= found.keys():
        if data.get("quantization", found) != found:
            raise InputError(f"{where}: quantization and quantization_config differ")
        return  # MLX writes its own twice
    raise InputError(
        f"{where}: the weights are quantised by {shown(method)}, which memsim does not read; it reads bf16, f16 and "
        f"f32, MLX's directories and GGUF files of the same model"
    )


def _refuse_architecture(data: Mapping[str, Any], family: Family, where: str) -> None:
    """Refuse a class that computes something else than the family's own, which its ``model_type`` does not tell."""
    found = data.get("architectures")
    if found is None or data.get("multimodal_type") is not None:
        return
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{where}: 'architectures' must be a list of names, not {shown(found)}")
    other = [name for name in found if name not in family.architectures]
    if other:
        hint = ""
        if other[0].endswith("ForSequenceClassification"):
            hint = "; for a classifier of your own, train its base model with --scheme head --labels N"
        raise InputError(
            f"{where}: the architecture {shown(other[0])} has no head that memsim knows, or computes something else; "
            f"of {data['model_type']} it has {', '.join(family.architectures)}{hint}"
        )
