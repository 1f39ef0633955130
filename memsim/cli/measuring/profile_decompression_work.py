"""What ``memsim profile decompression`` does once the options are read."""

from collections.abc import Sequence
from pathlib import Path

from memsim.cap.processors import available_threads
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.errors import UsageError
from memsim.models.lora import LoraConfig
from memsim.planner.run_plan import TrainingSetup
from memsim.reports.shares_file import shares_record
from memsim.result_file import emit_json
from memsim.runtime.config import RunConfig
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.device_file import find_device
from memsim.simulator.unpack_share import PARTS, UnpackShare, Way, simulated_share
from memsim.units import is_decimal, parse_bytes
from memsim.weights.dimensions import find_dimensions


def decompression(
    model: str, lengths: str, devices: tuple[str, ...], measure: bool, schedule: str, naive: str, compute: str,
    steps: int, budget: str, threads: int, plot: Path | None, json_path: str | None,
) -> None:  # fmt: skip
    """Show what unpacking INT4 weights takes of forward, backward and step, against the sequence length."""
    tokens = _tokens(lengths)
    ways: dict[Way, str] = {"fused": schedule, "naive": naive}
    targets = [find_device(name) for name in devices]
    config, packing, name = find_dimensions(model)
    if max(tokens) > config.max_position_embeddings:
        raise UsageError(f"--seq-len {max(tokens)} is above the model's {config.max_position_embeddings}")
    found: list[UnpackShare] = []
    if measure:
        from memsim.bench.decompression import measured_shares

        workers = threads or available_threads()
        run = RunConfig(
            budget_bytes=parse_bytes(budget),
            decimal=is_decimal(budget),
            model=model,
            steps=steps,
            compute=compute,
            threads=workers,
        )
        found += measured_shares(run, tokens, ways, stage)
    for device in targets:
        stage(f"simulating {device.name}")
        count = max(1, int(device.at("nominal").threads))
        for seq_len in tokens:
            for way, chosen in ways.items():
                optimizer = OptimizerConfig()
                setup = TrainingSetup(config, packing, LoraConfig(), chosen, seq_len, optimizer, threads=count)
                found.append(simulated_share(setup, way, device))
    if plot is not None:
        from memsim.reports.plots import plot_shares

        plot_shares(plot, found)
    if json_path is not None:
        emit_json(shares_record(name, found), json_path)
    if json_path != "-":
        say(*_text(found))


def _tokens(lengths: str) -> list[int]:
    try:
        tokens = sorted({int(part) for part in lengths.split(",")})
    except ValueError:
        raise UsageError(f"--seq-len {lengths!r} is not a list of numbers such as 16,64,256") from None
    if tokens[0] < 1:
        raise UsageError(f"--seq-len {tokens[0]} is below 1")
    return tokens


def _text(found: Sequence[UnpackShare]) -> list[str]:
    """Return a table for each curve: the share of each part, and in brackets its band."""
    curves: dict[str, list[UnpackShare]] = {}
    for share in found:
        curves.setdefault(share.label, []).append(share)
    lines: list[str] = []
    for label, rows in curves.items():
        how = ", ".join(filter(None, (rows[0].schedule, rows[0].compute)))
        lines += [
            *([""] if lines else []),
            f"{label} ({how})",
            f"{'tokens':>8}{'step':>10}" + "".join(f"{part:>24}" for part in PARTS),
        ]
        for row in rows:
            bands = [row.share[part] for part in PARTS]
            cells = "".join(f"{f'{band.nominal:.1%} ({band.low:.1%} to {band.high:.1%})':>24}" for band in bands)
            lines.append(f"{row.seq_len:>8}{row.step_s.nominal:>8.2f} s{cells}")
    return lines
