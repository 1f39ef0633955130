"""A GGUF file as a model: Hugging Face's configuration and tensor names, from llama.cpp's.

Llama's q and k rows, which llama.cpp's converter reorders for its own RoPE, are put back. Gemma's norms, to which it
adds 1, stay: a pack, too, holds what a norm multiplies with. Source: convert_hf_to_gguf.py, and gguf's own
``tensor_mapping``.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict
from memsim.weights.readers.gguf_config import hugging_face_config
from memsim.weights.readers.gguf_files import GgufFiles, read_gguf_files
from memsim.weights.readers.gguf_tensor import GGUF_KINDS, GgufTensor
from memsim.weights.readers.hugging_face import hugging_face_name, wanted_tensors
from memsim.weights.readers.source import Checkpoint, SourceTensor, eos_in
from memsim.weights.tokenizers.directory_tokenizer import TOKENIZER_FILE, directory_tokenizer
from memsim.weights.tokenizers.gguf_tokenizer import gguf_tokenizer

ROPE_FACTORS = "rope_freqs.weight"

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_GEMMA_BLOCK = _BLOCK | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_MAX_ROPE_FACTORS = 1 << 12


def open_gguf(path: Path) -> Checkpoint:
    """Check a GGUF file, or the files of one model of which it is one, without reading any weight.

    Raises:
        InputError: Malformed, an unknown architecture, or a tensor that is missing, unknown, or has another type or
            shape than the metadata imply; or the ``gguf`` package is missing.
    """
    header = read_gguf_files(path)
    path = header.paths[0]
    config = config_from_dict(_config_dict(header, path), str(path), foreign=False)
    names = _GEMMA_BLOCK if config.model_type.startswith("gemma3") else _BLOCK
    unused = set(header.tensors) - {ROPE_FACTORS}
    tensors: dict[tuple[str, str], SourceTensor] = {}
    for part, name, shape in wanted_tensors(config, len(header.tensors), str(path)):
        hf_name = hugging_face_name(part, name, config.family)
        stored_name = _llama_cpp_name(hf_name, names)
        tensors[part, name] = _checked(hf_name, stored_name, shape, header, config, path)
        unused.discard(stored_name)
    if unused:
        raise InputError(f"{path} holds the tensor {shown(min(unused))}, which {config.model_type} does not have")
    eos = eos_in(header.metadata.get("tokenizer.ggml.eos_token_id"), config)
    # A tokenizer.json beside the file is the model's own.
    beside = (path.parent / TOKENIZER_FILE).is_file()
    read = partial(directory_tokenizer, path.parent, config.model_type) if beside else partial(gguf_tokenizer, path)
    return Checkpoint(path.parent, config, eos, tensors, read)


def _config_dict(header: GgufFiles, path: Path) -> dict[str, Any]:
    embedding = header.tensors.get(_OUTER["model.embed_tokens.weight"])
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{path} has no matrix token_embd.weight; is it a language model?")
    tied = _OUTER["lm_head.weight"] not in header.tensors
    config = hugging_face_config(header.metadata, embedding.shape[0], _rope_factors(header, path), str(path))
    return config | {"tie_word_embeddings": tied, "attention_bias": "blk.0.attn_q.bias" in header.tensors}


def _rope_factors(header: GgufFiles, path: Path) -> NDArray[np.float32] | None:
    entry = header.tensors.get(ROPE_FACTORS)
    if entry is None:
        return None
    if entry.kind != "f32" or len(entry.shape) != 1 or not 0 < entry.shape[0] <= _MAX_ROPE_FACTORS:
        raise InputError(f"{path}: {ROPE_FACTORS} is {entry.kind} {list(entry.shape)}, not a short f32 vector")
    with GgufTensor(ROPE_FACTORS, header.places[ROPE_FACTORS], entry).open() as reader:
        return reader.read(0, 1).values.reshape(-1)


def _llama_cpp_name(name: str, block_names: Mapping[str, str]) -> str:
    """Return llama.cpp's name for Hugging Face's ``name``."""
    if not name.startswith("model.layers."):
        return _OUTER[name]
    _, _, index, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{index}.{block_names[module]}.{kind}"


def _checked(
    name: str, stored_name: str, shape: tuple[int, ...], header: GgufFiles, config: ModelConfig, path: Path
) -> GgufTensor:
    entry = header.tensors.get(stored_name)
    if entry is None:
        raise InputError(f"{path} has no tensor {stored_name!r}; is it a whole {config.model_type}?")
    if entry.shape != shape:
        raise InputError(f"{path}: {stored_name!r} has shape {list(entry.shape)}, but its metadata imply {list(shape)}")
    if entry.kind not in GGUF_KINDS:
        raise InputError(f"{path}: {stored_name!r} is {entry.kind}; memsim packs {', '.join(GGUF_KINDS)}")
    reordered = header.metadata["general.architecture"] == "llama" and (".q_proj." in name or ".k_proj." in name)
    return GgufTensor(name, header.places[stored_name], entry, config.head_dim if reordered else None)
