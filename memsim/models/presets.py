"""The true dimensions of published models, from their ``config.json``.

Source: the config.json files of Qwen/Qwen2.5-0.5B, -1.5B and -3B.
"""

from memsim.errors import InputError
from memsim.models.config import ModelConfig


def _qwen2(c: int, h: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> ModelConfig:
    return ModelConfig(
        model_type="qwen2",
        vocab_size=151_936,
        hidden_size=c,
        intermediate_size=h,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        attention_bias=True,
    )


PRESETS = {
    "qwen2.5-0.5b": _qwen2(896, 4_864, 24, 14, 2, 64),
    "qwen2.5-1.5b": _qwen2(1_536, 8_960, 28, 12, 2, 128),
    "qwen2.5-3b": _qwen2(2_048, 11_008, 36, 16, 2, 128),
}


def preset(name: str) -> ModelConfig:
    """Return the preset called ``name`` (case does not matter).

    Raises:
        InputError: No such preset; the message lists them.
    """
    try:
        return PRESETS[name.lower()]
    except KeyError:
        raise InputError(f"no model called {name!r}; presets: {', '.join(PRESETS)}") from None
