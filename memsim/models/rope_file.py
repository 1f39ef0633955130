"""Reading RoPE's settings, of which transformers 4 and 5 have different spellings: where both are there, they agree."""

import math
from collections.abc import Mapping
from typing import Any

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.models.fields import integer, mapping, number
from memsim.models.rope import Rope, RopeScaling

_BASES = (1.0, 1e15)  # published ones are from 1e4 to 1e9; beyond, frequencies are no numbers in f32
_FACTORS = (1e-3, 1e6)
_KINDS = ("default", "linear", "llama3", "yarn", "dynamic")
_KNOWN = frozenset((
    "attention_factor", "beta_fast", "beta_slow", "factor", "finetuned", "high_freq_factor", "low_freq_factor",
    "mscale", "mscale_all_dim", "original_max_position_embeddings", "partial_rotary_factor", "rope_theta",
    "rope_type", "truncate", "type",
))  # fmt: skip
_NESTED = ("full_attention", "sliding_attention")
_ORIGINAL = "original_max_position_embeddings"


def read_rope(
    data: Mapping[str, Any], defaults: Mapping[str, Any], local: bool, where: str
) -> tuple[Rope, Rope | None]:
    """Read the RoPE settings of a ``config.json``.

    Args:
        data: The file.
        defaults: The bases, and the longest sequence, where the file has none.
        local: Whether blocks with a sliding window have settings of their own.
        where: What error messages call the file.

    Returns:
        The settings of all blocks (or those without a window), and of the blocks with one if they have their own.

    Raises:
        InputError: Malformed, a kind of scaling that is not modelled, or two spellings that disagree.
    """
    parameters, old = mapping(data, "rope_parameters", where), mapping(data, "rope_scaling", where)
    nested = local and any(key in parameters for key in _NESTED)
    full, sliding = (mapping(parameters, key, where) for key in _NESTED) if nested else (parameters or old, {})

    def read(rope: Mapping[str, Any], key: str) -> Rope:
        return Rope(_theta(rope, data, defaults, key, where), _read_scaling(rope, {**defaults, **data}, where))

    own = read(full, "rope_theta")
    if parameters and old and read(old, "rope_theta") != own:
        raise InputError(f"{where}: rope_parameters and rope_scaling say different things; take one out")
    if not local:
        return own, None
    windowed = read(sliding, "rope_local_base_freq")
    if windowed.scaling is not None:
        raise InputError(f"{where}: RoPE scaling of sliding_attention is not supported")
    return own, windowed


def _theta(
    rope: Mapping[str, Any], data: Mapping[str, Any], defaults: Mapping[str, Any], key: str, where: str
) -> float:
    """Return the base; the file has it beside the other settings, or among them, or in both places."""
    inner, outer = rope.get("rope_theta"), data.get(key)
    if inner is not None and outer is not None and inner != outer:
        raise InputError(f"{where}: {key} is {shown(outer)}, and rope_theta {shown(inner)}; take one out")
    found = next((value for value in (inner, outer) if value is not None), defaults.get(key))
    return number({key: found}, key, where, *_BASES)


def _read_scaling(rope: Mapping[str, Any], data: Mapping[str, Any], where: str) -> RopeScaling | None:
    """Return how frequencies are stretched, None where they are as they are."""
    kind = _kind(rope, where)
    if unknown := [key for key in rope if key not in _KNOWN and rope[key] is not None]:
        raise InputError(f"{where}: {shown(unknown[0])} among the settings of RoPE is not supported")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise InputError(f"{where}: partial_rotary_factor {shown(rope['partial_rotary_factor'])} is not supported")
    if kind == "default":
        return None
    factor = number(rope, "factor", where, *_FACTORS)
    if kind == "dynamic":  # below the trained length, beyond which no sequence goes here, it changes nothing
        return None
    if kind == "linear":
        return RopeScaling("linear", factor)
    original = integer({_ORIGINAL: _original(rope, data)}, _ORIGINAL, where)
    if kind == "yarn":
        return _read_yarn(rope, factor, original, where)
    low, high = (number(rope, f"{end}_freq_factor", where, *_FACTORS) for end in ("low", "high"))
    if not low < high:
        raise InputError(f"{where}: 'low_freq_factor' {low} must be below 'high_freq_factor' {high}")
    return RopeScaling("llama3", factor, low, high, original)


def _original(rope: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    """Return the length that a model was first trained on, from where transformers takes it."""
    return data.get(_ORIGINAL) or rope.get(_ORIGINAL) or data.get("max_position_embeddings")


def _kind(rope: Mapping[str, Any], where: str) -> str:
    """Return the kind of scaling; ``type`` is its older name."""
    names = [rope[key] for key in ("rope_type", "type") if rope.get(key) is not None]
    if len(names) == 2 and names[0] != names[1]:
        raise InputError(f"{where}: RoPE's rope_type is {shown(names[0])}, and its type {shown(names[1])}")
    kind = names[0] if names else "default"
    if kind not in _KINDS:
        raise InputError(f"{where}: RoPE scaling {shown(kind)} is not supported; memsim has {', '.join(_KINDS[1:])}")
    if not names and rope.get("factor") is not None:
        raise InputError(f"{where}: the settings of RoPE have a factor and no rope_type")
    return str(kind)


def _read_yarn(rope: Mapping[str, Any], factor: float, original: int, where: str) -> RopeScaling:
    """Return YaRN's settings, with transformers' defaults."""

    def optional(key: str, default: float) -> float:
        return number(rope, key, where, *_FACTORS) if rope.get(key) else default

    fast, slow = optional("beta_fast", 32.0), optional("beta_slow", 1.0)
    if not slow < fast:
        raise InputError(f"{where}: 'beta_slow' {slow} must be below 'beta_fast' {fast}")
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise InputError(f"{where}: 'truncate' must be true or false, not {shown(truncate)}")

    def grown(share: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0

    attention = grown(1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        attention = grown(optional("mscale", 1.0)) / grown(optional("mscale_all_dim", 1.0))
    if rope.get("attention_factor") is not None:
        attention = number(rope, "attention_factor", where, *_FACTORS)
    return RopeScaling("yarn", factor, None, None, original, fast, slow, truncate, attention)
