"""``memsim models``: the families and presets that memsim knows."""

import json
from pathlib import Path
from typing import Any

import click

from memsim.files import write_text
from memsim.models.config import SUPPORTED_MODEL_TYPES
from memsim.models.lora import LoraConfig, n_trainable
from memsim.models.parts import GROUP_SIZES
from memsim.models.presets import PRESETS
from memsim.units import format_bytes
from memsim.weights.pack_writer import pack_bytes


@click.command(name="models")
@click.option("--json", "json_path", metavar="PATH|-", help="Write the list as JSON to PATH, or to stdout.")
def command(json_path: str | None) -> None:
    """List model families and presets: parameters, INT4 size, trainable parameters of a rank-8 LoRA."""
    record = _record()
    if json_path == "-":
        click.echo(json.dumps(record, indent=2))
        return
    if json_path is not None:
        write_text(Path(json_path), json.dumps(record, indent=2) + "\n")
    click.echo(_table(record))


def _record() -> dict[str, Any]:
    lora = LoraConfig()
    presets = [
        {
            "name": name,
            "family": config.model_type,
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "parameters": config.n_parameters(),
            "int4_bytes": pack_bytes(config, GROUP_SIZES[0]),
            "lora_parameters": n_trainable(config, lora),
        }
        for name, config in PRESETS.items()
    ]
    return {
        "command": "models",
        "families": list(SUPPORTED_MODEL_TYPES),
        "group_size": GROUP_SIZES[0],
        "lora_rank": lora.rank,
        "presets": presets,
    }


def _table(record: dict[str, Any]) -> str:
    """Return the presets as aligned columns, numbers to the right."""
    lora = f"LoRA rank {record['lora_rank']}"
    rows = [("preset", "family", "layers", "hidden", "parameters", "INT4", lora)]
    for preset in record["presets"]:
        numbers = [f"{preset[key]:,}" for key in ("layers", "hidden_size", "parameters")]
        size, trainable = format_bytes(preset["int4_bytes"]), f"{preset['lora_parameters']:,}"
        rows.append((preset["name"], preset["family"], *numbers, size, trainable))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    families = ", ".join(record["families"])
    lines.append(f"families: {families}; --model also takes a Hugging Face directory or a pack of these")
    return "\n".join(lines)
