"""The oracle: transformers' own model on the de-quantised weights of a pack, with PEFT's LoRA."""

from collections.abc import Mapping

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from memsim.models.config import ModelConfig
from memsim.models.family import FAMILIES
from memsim.models.lora import LoraConfig
from memsim.models.parts import block_part, matrices, part_names, vectors
from memsim.models.scheme import Scheme, with_classifier
from memsim.weights.adapters import peft_targets, tensor_key
from memsim.weights.pack import Pack
from memsim.weights.quantize import dequantize
from memsim.weights.readers.hugging_face import hugging_face_name
from memsim.weights.tensor_file import map_file, view


def dequantized(pack: Pack) -> dict[str, torch.Tensor]:
    """Return every weight of ``pack`` under transformers' names, in f32."""
    state: dict[str, torch.Tensor] = {}
    config = pack.config
    for part in part_names(config):
        mapped = map_file(pack.part(part).path)
        tensors = {name: view(mapped, entry) for name, entry in pack.part(part).tensors.items()}
        for name, shape in matrices(config, part).items():
            rows = dequantize(tensors[f"{name}.q"], tensors[f"{name}.scales"], *shape, pack.formats.of(part, name))
            state[hugging_face_name(part, f"{name}.weight", config.family)] = torch.from_numpy(rows)
        for name in vectors(config, part):
            # A pack holds the factor of a norm; Gemma's weights are that minus 1.
            offset = 1.0 if config.model_type == "gemma3_text" else 0.0
            values = torch.from_numpy(np.array(tensors[name]) - np.float32(offset))
            state[hugging_face_name(part, name, config.family)] = values
    return state


def reference_config(config: ModelConfig) -> PretrainedConfig:
    """Return transformers' own configuration object, from the fields that ours shares with its files."""
    fields = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    if "layer_types" in fields:
        fields |= {"layer_types": list(fields["layer_types"]), "use_sliding_window": True}
    if not config.sliding_window:
        fields["sliding_window"] = None
    fields |= {theirs: fields.pop(ours) for ours, theirs in config.family.fields.items()}
    fields["word_embed_proj_dim"] = config.hidden_size  # of OPT
    return AutoConfig.for_model(config.model_type, **fields)


def model_class(config: ModelConfig) -> type:
    """Return transformers' class of models with the head that ``config`` has."""
    if config.family.causal:
        return AutoModelForCausalLM
    return AutoModelForMaskedLM if config.num_labels is None else AutoModelForSequenceClassification


def reference_model(pack: Pack) -> PreTrainedModel:
    """Return transformers' model with exactly the weights that memsim computes with."""
    model = model_class(pack.config).from_config(reference_config(pack.config)).float()
    missing, unexpected = model.load_state_dict(dequantized(pack), strict=False)
    assert not unexpected
    # Tied to the embedding, and to lm_head.bias.
    assert set(missing) <= {"lm_head.weight", "lm_head.decoder.weight", "lm_head.decoder.bias"}
    model.tie_weights()
    return model.eval()


def model_for(pack: Pack, scheme: Scheme) -> torch.nn.Module:
    """Return transformers' model without what is trained, with a new classifier where ``scheme`` trains one."""
    if not scheme.labels:
        return reference_model(pack)
    config = reference_config(with_classifier(pack.config, scheme))
    model = AutoModelForSequenceClassification.from_config(config).float()
    missing, unexpected = model.load_state_dict(dequantized(pack), strict=False)
    assert all(name.startswith("classifier.") for name in missing)
    assert all(name.startswith("lm_head.") for name in unexpected)
    return model.eval()


def with_adapters(pack: Pack, lora: LoraConfig, adapters: Mapping[tuple[int, str], np.ndarray]) -> PeftModel:
    """Return the reference model with PEFT adapters of the given values."""
    targets = peft_targets(pack.config, lora)
    settings = PeftLoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    model = get_peft_model(reference_model(pack), settings)
    with torch.no_grad():
        for key, values in adapters.items():
            parameter(model, *key).copy_(torch.from_numpy(np.array(values)))
    return model


def parameter(model: PeftModel, block: int, name: str) -> torch.nn.Parameter:
    """Return PEFT's parameter for adapter tensor ``name`` (``self_attn.q_proj.lora_A``) of ``block``."""
    key = tensor_key(block, name, FAMILIES[model.config.model_type])
    return model.get_parameter(key.removesuffix(".weight") + ".default.weight")


def loss_of(model: torch.nn.Module, ids: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """Return the mean cross-entropy of ``labels`` [T] given ``ids`` [T]."""
    logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels.astype(np.int64)))


__all__ = ["block_part", "dequantized", "loss_of", "parameter", "reference_model", "with_adapters"]
