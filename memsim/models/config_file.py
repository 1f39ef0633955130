"""Reading a Hugging Face ``config.json``, untrusted: every field is used, known not to matter, or refused by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.models.config import FULL, LAYER_TYPES, MULTIMODAL, SLIDING, SUPPORTED_MODEL_TYPES, ModelConfig
from memsim.models.family import FAMILIES, Family
from memsim.models.fields import boolean, integer, mapping, number
from memsim.models.known_fields import refuse_unknown
from memsim.models.rope_file import read_rope

_MAX_LAYERS = 10_000
_MAX_LABELS = 100_000
_EPSILONS = (1e-30, 1.0)  # published ones are from 1e-12 to 1e-5; less is 0 in f32
_CLASSIFIERS = ("RobertaForSequenceClassification",)
_PROBLEM = "single_label_classification"


def config_from_dict(data: Mapping[str, Any], where: str, *, foreign: bool = True) -> ModelConfig:
    """Read a Hugging Face ``config.json`` (or our own ``ModelConfig.to_dict``), untrusted.

    Of a multimodal ``gemma3`` file, the text model is read.

    Args:
        data: The parsed JSON object.
        where: What the error messages call its file.
        foreign: Whether it is transformers', whose class has a default for what a file leaves out. Where it is our own,
            or says everything (GGUF's), what is left out is not there.

    Raises:
        InputError: An unknown architecture, a missing or impossible field, or a feature that is not modelled.
    """
    model_type = data.get("model_type")
    if isinstance(model_type, str) and model_type in MULTIMODAL:
        data = _language_model(data, where)
        model_type = data["model_type"]
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(SUPPORTED_MODEL_TYPES)
        raise InputError(f"{where}: model_type {shown(model_type)} is not supported; memsim runs: {supported}")
    family = FAMILIES[model_type]
    given = {key: value for key, value in data.items() if value is not None}
    data = _by_our_names(data, family, foreign)
    refuse_unknown(data, family, where)
    heads, hidden_size = integer(data, "num_attention_heads", where), integer(data, "hidden_size", where)
    data = {"num_key_value_heads": heads, "head_dim": hidden_size // heads, **data}
    rope, local = None, None
    if family.first_position is None:
        rope, local = read_rope(given, data, family.window == "pattern", where)
    sliding_window, layer_types = _read_layers(data, family, foreign, where)
    config = ModelConfig(
        model_type=model_type,
        vocab_size=integer(data, "vocab_size", where),
        hidden_size=hidden_size,
        intermediate_size=integer(data, "intermediate_size", where),
        num_hidden_layers=integer(data, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_key_value_heads=integer(data, "num_key_value_heads", where),
        head_dim=integer(data, "head_dim", where),
        rms_norm_eps=number(data, "rms_norm_eps", where, *_EPSILONS),
        rope_theta=rope.theta if rope else None,
        max_position_embeddings=integer(data, "max_position_embeddings", where),
        tie_word_embeddings=boolean(data, "tie_word_embeddings", where),
        attention_bias=boolean(data, "attention_bias", where) or family.always_biased,
        rope_scaling=rope.scaling if rope else None,
        rope_local_base_freq=local.theta if local else None,
        sliding_window=sliding_window,
        layer_types=layer_types,
        query_pre_attn_scalar=integer(data, scalar, where) if (scalar := "query_pre_attn_scalar") in data else None,
        type_vocab_size=integer(data, "type_vocab_size", where) if family.normed_embedding else None,
        num_labels=_read_labels(data, family, where),
        multimodal_type=data.get("multimodal_type"),
    )
    if heads % config.num_key_value_heads:
        raise InputError(f"{where}: {heads} query heads cannot share {config.num_key_value_heads} key-value heads")
    if config.longest_sequence < 1:
        raise InputError(f"{where}: 'max_position_embeddings' {config.max_position_embeddings} leaves no position")
    if config.head_dim % 2 and config.ropes():
        raise InputError(f"{where}: head_dim {config.head_dim} is odd; RoPE rotates pairs")
    return config


def _by_our_names(data: Mapping[str, Any], family: Family, foreign: bool) -> dict[str, Any]:
    """Return the fields that have a value, by our names, and the defaults of transformers' class for missing ones.

    Null is the same as missing, but for fields where it says something: as many key-value heads as heads, no window.
    """
    own = {key: value for key, value in data.items() if value is not None}
    if own.get("sliding_window") == 0:  # some programs write it where there is none
        del own["sliding_window"]
    said = [key for key in ("num_key_value_heads", "sliding_window") if key in data]
    said += ["sliding_window_pattern"] if "layer_types" in own else []
    defaults = {key: value for key, value in family.defaults.items() if foreign and key not in said}
    return defaults | own | {ours: own[theirs] for ours, theirs in family.fields.items() if theirs in own}


def _language_model(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of the language model in a multimodal one; those of the whole model count where it has none."""
    whole, text = data["model_type"], mapping(data, "text_config", where)
    if text.get("model_type", MULTIMODAL[whole]) != MULTIMODAL[whole]:
        raise InputError(f"{where}: the text_config of {whole} is of model_type {shown(text['model_type'])}")
    # Whether the head is tied is the whole model's to say; transformers reads it there.
    shared = {key: data[key] for key in ("tie_word_embeddings", "quantization", "quantization_config") if key in data}
    for key in shared:
        if text.get(key, shared[key]) != shared[key]:
            raise InputError(f"{where}: {key} is {shown(shared[key])}, and in text_config {shown(text[key])}")
    return {**text, **shared, "model_type": MULTIMODAL[whole], "multimodal_type": whole}


def _read_labels(data: Mapping[str, Any], family: Family, where: str) -> int | None:
    """Return the number of classes of a sequence classifier, None for a model that predicts tokens."""
    architectures = data.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not family.transformed_head:
        return None
    if name is None:  # our own file
        return integer(data, "num_labels", where) if "num_labels" in data else None
    if name not in _CLASSIFIERS:
        return None
    if data.get("problem_type", _PROBLEM) != _PROBLEM:
        raise InputError(f"{where}: problem_type {shown(data['problem_type'])} is not supported; memsim has {_PROBLEM}")
    names = mapping(data, "id2label", where)
    labels = integer({"num_labels": 2, **({"num_labels": len(names)} if names else {}), **data}, "num_labels", where)
    if not 1 < labels <= _MAX_LABELS:  # one label is a regression to transformers
        raise InputError(f"{where}: {labels} labels; a classifier has 2 to {_MAX_LABELS:,}")
    return labels


def _read_layers(
    data: Mapping[str, Any], family: Family, foreign: bool, where: str
) -> tuple[int | None, tuple[str, ...] | None]:
    """Return the sliding window, and the kind of each block; None twice if no block has a window."""
    layers = integer(data, "num_hidden_layers", where)
    # Before anything is listed by layer: a hostile count must not make a list of billions.
    if layers > _MAX_LAYERS:
        raise InputError(f"{where}: {layers} layers are over the {_MAX_LAYERS} that memsim takes")
    types = data.get("layer_types")
    if types is None:
        types = _layer_types(data, family, foreign, layers, where)
    if not isinstance(types, list | tuple) or len(types) != layers or any(kind not in LAYER_TYPES for kind in types):
        raise InputError(f"{where}: 'layer_types' must be a list of {layers}, each {' or '.join(LAYER_TYPES)}")
    if SLIDING not in types:  # a file without types means what the family's pattern says
        return None, tuple(types) if family.window == "pattern" else None
    _refuse_other_windows(data, family, types, where)
    return integer(data, "sliding_window", where), tuple(types)


def _refuse_other_windows(data: Mapping[str, Any], family: Family, types: Sequence[str], where: str) -> None:
    """Refuse blocks with a window where the family has none, or another field says that they have none."""
    if family.window == "none":
        raise InputError(f"{where}: 'layer_types' has {SLIDING}, which {data['model_type']} does not have")
    if family.window == "upper" and data.get("use_sliding_window", True) is not True:
        raise InputError(f"{where}: 'layer_types' has {SLIDING}, but use_sliding_window is false")
    pattern = data.get("sliding_window_pattern", 0) if "layer_types" in data else 0
    if pattern and list(types) != _pattern(integer(data, "sliding_window_pattern", where), len(types)):
        raise InputError(f"{where}: 'layer_types' is not what sliding_window_pattern {pattern} means")


def _pattern(pattern: int, layers: int) -> list[str]:
    return [SLIDING if (index + 1) % pattern else FULL for index in range(layers)]


def _layer_types(data: Mapping[str, Any], family: Family, foreign: bool, layers: int, where: str) -> list[str]:
    """Return what ``layer_types`` means where a file does not have it."""
    if family.window == "pattern" and (foreign or "sliding_window_pattern" in data):
        return _pattern(integer(data, "sliding_window_pattern", where), layers)
    if family.window == "all" and "sliding_window" in data:
        return [SLIDING] * layers
    if family.window != "upper" or not boolean(data, "use_sliding_window", where):
        return [FULL] * layers
    full = integer(data, "max_window_layers", where)
    return [SLIDING if index >= full else FULL for index in range(layers)]
