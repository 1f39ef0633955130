"""``memsim pack``: quantise a Hugging Face checkpoint into a pack."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from memsim.cli.progress import bytes_progress
from memsim.errors import InputError
from memsim.files import write_text
from memsim.models.parts import GROUP_SIZES
from memsim.units import format_bytes
from memsim.weights.huggingface import PackReport, TensorError, pack_checkpoint


@click.command(name="pack")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--group-size",
    type=click.Choice([str(size) for size in GROUP_SIZES]),
    default=str(GROUP_SIZES[0]),
    show_default=True,
    help="Weights of a row that share one scale.",
)
@click.option("--json", "json_path", metavar="PATH|-", help="Write the result as JSON to PATH, or to stdout.")
def command(source: Path, out: Path, group_size: str, json_path: str | None) -> None:
    """Quantise the checkpoint in SOURCE to INT4 and write it to the new directory OUT.

    SOURCE is a Hugging Face directory: config.json, safetensors in bf16, f16 or f32 (one file or shards), and
    tokenizer.json. It is streamed by rows, so that packing takes under 300 MB of memory for a matrix of any size.
    """
    if json_path not in (None, "-") and not Path(json_path).absolute().parent.is_dir():
        raise InputError(f"cannot write {json_path}: its directory does not exist")
    with bytes_progress("packing") as progress:
        report = pack_checkpoint(source, out, int(group_size), progress)
    if json_path != "-":
        click.echo(_table(report))
    if json_path == "-":
        click.echo(json.dumps(_record(report), indent=2))
    elif json_path is not None:
        write_text(Path(json_path), json.dumps(_record(report), indent=2) + "\n")


def _by_kind(report: PackReport) -> dict[str, list[TensorError]]:
    """Group the matrices by their name without the layer number."""
    kinds: dict[str, list[TensorError]] = {}
    for error in report.errors:
        kind = ".".join(word for word in error.name.split(".") if not word.isdigit())
        kinds.setdefault(kind.removesuffix(".weight").removeprefix("model."), []).append(error)
    return kinds


def _table(report: PackReport) -> str:
    """Return one line for each kind of matrix, and the total."""
    lines = [f"{'quantisation error, ||stored - original|| / ||original||':<58} {'count':>5} {'mean':>7} {'worst':>7}"]
    for kind, errors in _by_kind(report).items():
        worst = max(errors, key=lambda error: error.relative_error)
        rows, columns = worst.shape
        mean = fmean(error.relative_error for error in errors)
        where = f"  {worst.name}" if len(errors) > 1 else ""
        name = f"{kind} [{rows:,} x {columns:,}]"
        lines.append(f"{name:<58} {len(errors):>5} {mean:>7.2%} {worst.relative_error:>7.2%}{where}")
    pack = report.pack
    lines.append(f"{'total':<58} {len(report.errors):>5} {report.relative_error:>7.2%}")
    lines.append(
        f"{pack.directory}: {format_bytes(pack.n_bytes)} in {len(pack.parts)} files, groups of {pack.group_size}"
    )
    return "\n".join(lines)


def _record(report: PackReport) -> dict[str, Any]:
    pack = report.pack
    return {
        "command": "pack",
        "pack": str(pack.directory),
        "model_hash": pack.model_hash,
        "config": pack.config.to_dict(),
        "group_size": pack.group_size,
        "n_bytes": pack.n_bytes,
        "tokenizer": pack.tokenizer is not None,
        "relative_error": report.relative_error,
        "tensors": [
            {"name": error.name, "shape": list(error.shape), "relative_error": error.relative_error}
            for error in report.errors
        ],
    }
