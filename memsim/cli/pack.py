"""``memsim pack``: quantise a checkpoint of any format into a pack."""

from pathlib import Path
from typing import Any

import click

from memsim.cli.progress import bytes_progress
from memsim.cli.say import say
from memsim.errors import InputError
from memsim.models.parts import GROUP_SIZES
from memsim.result_file import emit_json
from memsim.units import format_bytes
from memsim.weights.cache import local_source
from memsim.weights.packing import PackReport, pack_checkpoint


@click.command(name="pack")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--group-size",
    type=click.Choice([str(size) for size in GROUP_SIZES]),
    default=str(GROUP_SIZES[0]),
    show_default=True,
    help="Weights of a row that share one scale.",
)
@click.option("--json", "json_path", metavar="PATH|-", help="Write the result as JSON to PATH, or to stdout.")
def command(source: str, out: Path, group_size: str, json_path: str | None) -> None:
    """Quantise the checkpoint SOURCE to INT4 and write it to the new directory OUT.

    SOURCE is a Hugging Face directory (config.json, safetensors in bf16, f16 or f32, one file or shards), an MLX one
    (affine, any bits), a GGUF file (Q4_0 is taken over bit for bit in groups of 32; other types are quantised anew),
    or a model on the Hugging Face hub (owner/model, or owner/model/file.gguf). tokenizer.json is copied from beside
    it, or made from the metadata of a GGUF file (byte-level BPE of Qwen and Llama 3, SentencePiece). SOURCE is streamed
    by rows, so that packing takes under 300 MB of memory for a matrix of any size.
    """
    if json_path not in (None, "-") and not Path(json_path).absolute().parent.is_dir():
        raise InputError(f"cannot write {json_path}: its directory does not exist")
    with bytes_progress("packing") as progress:
        report = pack_checkpoint(local_source(source, progress), out, int(group_size), progress)
    if report.pack.tokenizer is None:
        beside = f"put the model's into {report.pack.directory}, or runs take bytes for tokens"
        say(f"memsim: {source} has no tokenizer.json beside it; {beside}", err=True)
    if json_path != "-":
        say(*_table(report))
    if json_path is not None:
        emit_json(_record(report), json_path)


def _table(report: PackReport) -> list[str]:
    """Return one line for each matrix, and the total."""
    width = max(len(error.name) for error in report.errors)
    lines = [f"{'matrix':<{width}} {'shape':>16} {'from':>5} {'error':>7} {'largest':>9}"]
    for error in report.errors:
        shape = "{} x {}".format(*error.shape)
        lost = f"{error.relative_error:>7.2%} {error.max_error:>9.3g}"
        lines.append(f"{error.name:<{width}} {shape:>16} {error.original:>5} {lost}")
    largest = max(error.max_error for error in report.errors)
    lines.append(f"{'total':<{width}} {len(report.errors):>16} {'':>5} {report.relative_error:>7.2%} {largest:>9.3g}")
    lines.append("error: ||stored - original|| / ||original||; largest: of |stored - original|")
    pack = report.pack
    lines.append(
        f"{pack.directory}: {format_bytes(pack.n_bytes)} in {len(pack.parts)} files, groups of {pack.group_size}"
    )
    return lines


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
            {
                "name": error.name,
                "shape": list(error.shape),
                "original": error.original,
                "relative_error": error.relative_error,
                "max_error": error.max_error,
            }
            for error in report.errors
        ],
    }
