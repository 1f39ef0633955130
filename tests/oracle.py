"""The oracle: transformers' own model on the de-quantised weights of a pack, with PEFT's LoRA."""

from collections.abc import Mapping

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from memsim.models.config import ModelConfig
from memsim.models.lora import LoraConfig
from memsim.models.parts import block_part, matrices, part_names, vectors
from memsim.weights.pack import Pack
from memsim.weights.quantize import dequantize
from memsim.weights.tensor_file import map_file, view


def dequantized(pack: Pack) -> dict[str, torch.Tensor]:
    """Return every weight of ``pack`` under transformers' names, in f32."""
    state: dict[str, torch.Tensor] = {}
    for index, part in enumerate(part_names(pack.config)):
        prefix = f"model.layers.{index - 1}." if part.startswith("block_") else "model."
        mapped = map_file(pack.part(part).path)
        tensors = {name: view(mapped, entry) for name, entry in pack.part(part).tensors.items()}
        for name, shape in matrices(pack.config, part).items():
            where = "" if name == "lm_head" else prefix
            rows = dequantize(tensors[f"{name}.q"], tensors[f"{name}.scales"], *shape)
            state[f"{where}{name}.weight"] = torch.from_numpy(rows)
        for name in vectors(pack.config, part):
            # A pack holds the factor of a norm; Gemma's weights are that minus 1.
            offset = 1.0 if pack.config.model_type == "gemma3_text" else 0.0
            state[f"{prefix}{name}"] = torch.from_numpy(np.array(tensors[name]) - np.float32(offset))
    return state


def reference_config(config: ModelConfig) -> PretrainedConfig:
    """Return transformers' own configuration object, from the fields that ours shares with its files."""
    fields = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    if "layer_types" in fields:
        fields |= {"layer_types": list(fields["layer_types"]), "use_sliding_window": True}
    if not config.sliding_window:
        fields["sliding_window"] = None
    return AutoConfig.for_model(config.model_type, **fields)


def reference_model(pack: Pack) -> PreTrainedModel:
    """Return transformers' model with exactly the weights that memsim computes with."""
    model = AutoModelForCausalLM.from_config(reference_config(pack.config)).float()
    missing, unexpected = model.load_state_dict(dequantized(pack), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied to the embedding
    model.tie_weights()
    return model.eval()


def with_adapters(pack: Pack, lora: LoraConfig, adapters: Mapping[tuple[int, str], np.ndarray]) -> PeftModel:
    """Return the reference model with PEFT adapters of the given values."""
    settings = PeftLoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules), lora_dropout=0.0, bias="none"
    )
    model = get_peft_model(reference_model(pack), settings)
    with torch.no_grad():
        for key, values in adapters.items():
            parameter(model, *key).copy_(torch.from_numpy(np.array(values)))
    return model


def parameter(model: PeftModel, block: int, name: str) -> torch.nn.Parameter:
    """Return PEFT's parameter for adapter tensor ``name`` (``self_attn.q_proj.lora_A``) of ``block``."""
    return model.get_parameter(f"base_model.model.model.layers.{block}.{name}.default.weight")


def loss_of(model: torch.nn.Module, ids: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """Return the mean cross-entropy of ``labels`` [T] given ``ids`` [T]."""
    logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels.astype(np.int64)))


__all__ = ["block_part", "dequantized", "loss_of", "parameter", "reference_model", "with_adapters"]
