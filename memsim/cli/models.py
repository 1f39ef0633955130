"""``memsim models``: the families and presets that memsim knows."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from memsim.cli.say import say
from memsim.cli.scheme import scheme_options, scheme_settings
from memsim.models.config import SUPPORTED_MODEL_TYPES, ModelConfig
from memsim.models.lora import n_trainable
from memsim.models.parts import GROUP_SIZES
from memsim.models.presets import PRESETS
from memsim.models.scheme import Scheme, with_classifier
from memsim.models.schemes import make_scheme
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.result_file import emit_json
from memsim.schedules.optimizers import OptimizerConfig
from memsim.units import format_bytes
from memsim.weights.pack_writer import pack_bytes

_SCHEDULE = "tiled"  # the one that holds least
_SEQ_LEN = 256


@click.command(name="models", context_settings={"show_default": True})
@scheme_options
@click.option("--json", "json_path", metavar="PATH|-", help="Write the list as JSON to PATH, or to stdout.")
def command(json_path: str | None, **options: Any) -> None:
    """List model families and presets.

    Of each: parameters, INT4 size, trainable parameters under --scheme (a classifier has two labels), and the smallest
    planned peak of a step of 256 tokens (beyond the interpreter; one thread).
    """
    settings = scheme_settings(options)
    labels = 2 if settings["scheme"] == "head" else 0
    scheme = make_scheme(settings["scheme"], settings["lora"], settings["virtual_tokens"], labels)
    causal = {name: config for name, config in PRESETS.items() if config.family.causal}
    presets = causal if scheme.trains_matrices else PRESETS
    for config in presets.values():
        scheme.check(config)
    record = _record(scheme, presets)
    if json_path is not None:
        emit_json(record, json_path)
    if json_path != "-":
        say(*_table(record))


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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    families = ", ".join(record["families"])
    lines.append(f"families: {families}; --model also takes packs and checkpoints (Hugging Face, MLX, GGUF) of these")
    return lines
