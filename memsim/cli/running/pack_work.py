"""What ``memsim pack`` does once the options are read."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from memsim.cli.progress import bytes_progress, stage
from memsim.cli.say import say
from memsim.models.matrix_formats import describe_counts
from memsim.quality.pack_with_text import measure_losses, pack_calibrated
from memsim.result_file import emit_json
from memsim.units import format_bytes
from memsim.weights.cache import DEFAULT_GROUP_SIZE, local_source
from memsim.weights.pack_writer import pack_bytes
from memsim.weights.packing import PackReport, pack_opened
from memsim.weights.readers.formats import open_source
from memsim.weights.recipe import Recipe


def command(
    source: str, out: Path, format_name: str | None, group_size: str | None, embedding_bits: str | None,
    calibrate: Path | None, measure: Path | None, json_path: str | None,
) -> None:  # fmt: skip
    """Quantise the checkpoint SOURCE and write it to the new directory OUT."""
    recipe = Recipe(format_name, _number(group_size), _number(embedding_bits))
    with bytes_progress("packing") as progress:
        checkpoint = open_source(local_source(source, progress))
        if calibrate is None:
            report = pack_opened(checkpoint, out, recipe, progress)
        else:
            report = pack_calibrated(checkpoint, out, recipe, calibrate, progress, stage)
    losses = measure_losses(checkpoint, report.pack, measure, stage) if measure is not None else None
    if report.pack.tokenizer is None:
        say(f"memsim: no tokenizer: {report.pack.tokenizer_origin}; runs of it need --tokenizer", err=True)
    if json_path != "-":
        say(*_table(report))
        if losses is not None:
            sample = f"{losses.n_windows} windows of {losses.window_tokens} tokens of {measure}"
            say(f"loss {losses.pack:.4f}, of the source {losses.source:.4f} ({sample})")
    if json_path is not None:
        record = _record(report) | {"losses": None if losses is None else asdict(losses), "calibrated": bool(calibrate)}
        emit_json(record, json_path)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _table(report: PackReport) -> list[str]:
    """Return one line for each matrix, and the total."""
    width = max(len(error.name) for error in report.errors)
    lines = [f"{'matrix':<{width}} {'shape':>16} {'from':>5} {'stored as':>14} {'error':>7} {'largest':>9}"]
    for error in report.errors:
        shape = "{} x {}".format(*error.shape)
        lost = f"{error.relative_error:>7.2%} {error.max_error:>9.3g}"
        lines.append(f"{error.name:<{width}} {shape:>16} {error.original:>5} {error.stored!s:>14} {lost}")
    largest = max(error.max_error for error in report.errors)
    total = f"{report.relative_error:>7.2%} {largest:>9.3g}"
    lines.append(f"{'total':<{width}} {len(report.errors):>16} {'':>5} {'':>14} {total}")
    lines.append("error: ||stored - original|| / ||original||; largest: of |stored - original|")
    pack = report.pack
    stored = describe_counts(error.stored for error in report.errors)
    lines.append(f"{pack.directory}: {format_bytes(pack.n_bytes)} in {len(pack.parts)} files, {stored}")
    if more := pack.n_bytes - pack_bytes(pack.config, DEFAULT_GROUP_SIZE):
        paper = f"symmetric INT4 in groups of {DEFAULT_GROUP_SIZE}"
        lines.append(f"{format_bytes(abs(more))} {'more' if more > 0 else 'less'} than {paper} would take")
    return lines


def _record(report: PackReport) -> dict[str, Any]:
    pack = report.pack
    return {
        "command": "pack",
        "pack": str(pack.directory),
        "model_hash": pack.model_hash,
        "config": pack.config.to_dict(),
        "group_size": pack.group_size,
        "symmetric_bytes": pack_bytes(pack.config, DEFAULT_GROUP_SIZE),
        "n_bytes": pack.n_bytes,
        "tokenizer": pack.tokenizer_origin if pack.tokenizer else None,
        "relative_error": report.relative_error,
        "tensors": [
            {
                "name": error.name,
                "shape": list(error.shape),
                "original": error.original,
                "format": error.stored.name,
                "group_size": error.stored.group_size,
                "relative_error": error.relative_error,
                "max_error": error.max_error,
            }
            for error in report.errors
        ],
    }
