"""Measure ``memsim pack`` on a checkpoint as large as a real one: ``python tools/bench_pack.py``.

A sharded bf16 checkpoint of a preset's shapes is made in a temporary directory (random weights), dropped from the page
cache, and packed by a process that the kernel would kill at the budget. Printed: its peak footprint and MB/s of source.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.cap.monitor import Monitor, describe_exit
from memsim.cap.open import open_cap
from memsim.errors import MemsimError
from memsim.files import require_free
from memsim.models.config import ModelConfig
from memsim.models.parts import TensorSpec
from memsim.models.presets import PRESETS, preset
from memsim.units import format_bytes, parse_bytes
from memsim.weights.pack_writer import pack_bytes
from memsim.weights.readers.hugging_face import hugging_face_name, wanted_tensors
from memsim.weights.tensor_file import TensorFileWriter

SHARD_BYTES = 1_000_000_000
CHUNK_WEIGHTS = 8 << 20
BF16_BYTES = 2


def shards(config: ModelConfig) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the tensors of each shard as name -> shape, in forward order, ``SHARD_BYTES`` at most unless it is one."""
    shard: dict[str, tuple[int, ...]] = {}
    left_bytes = SHARD_BYTES
    for part, name, shape in wanted_tensors(config, config.num_hidden_layers, "the preset"):
        n_bytes = BF16_BYTES * prod(shape)
        if shard and n_bytes > left_bytes:
            yield shard
            shard, left_bytes = {}, SHARD_BYTES
        shard[hugging_face_name(part, name, config.family)] = shape
        left_bytes -= n_bytes
    yield shard


def random_chunk() -> NDArray[np.uint16]:
    """Return bf16 bits of normal weights; tensors repeat them, which no quantiser notices."""
    values = np.random.default_rng(0).standard_normal(CHUNK_WEIGHTS, dtype=np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> np.uint32(16)).astype("<u2")


def write_checkpoint(directory: Path, config: ModelConfig) -> int:
    """Write a Hugging Face directory of random bf16 weights, in shards; return the bytes of its tensors."""
    directory.mkdir()
    weight_map: dict[str, str] = {}
    chunk, total = random_chunk(), 0
    for number, shard in enumerate(shards(config), start=1):
        path = directory / f"model-{number:05d}.safetensors"
        with path.open("wb") as file:
            writer = TensorFileWriter(file, {name: TensorSpec(shape, "bf16") for name, shape in shard.items()})
            for name, shape in shard.items():
                for first in range(0, prod(shape), CHUNK_WEIGHTS):
                    writer.write(name, chunk[: prod(shape) - first])
            writer.finish()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        weight_map |= dict.fromkeys(shard, path.name)
        total += BF16_BYTES * sum(map(prod, shard.values()))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    return total


def packed(source: Path, out: Path, budget_bytes: int) -> dict[str, float | str]:
    """Pack ``source`` in a capped process and return what it took.

    Raises:
        MemsimError: No cap can be had, or packing failed; the message holds its last line.
    """
    command = [sys.executable, "-m", "memsim", "pack", str(source), str(out), "--json", str(out.with_suffix(".json"))]
    with open_cap(budget_bytes) as cap, tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        with (
            subprocess.Popen(cap.command(command), stdout=said, stderr=said) as worker,
            Monitor(worker, cap) as monitor,
        ):
            worker.wait()
        wall_s = time.perf_counter() - start
        if worker.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise MemsimError(f"packing ended with {describe_exit(worker.returncode)}: {last}")
        record = json.loads(out.with_suffix(".json").read_text())
        return {
            "enforcement": cap.enforcement,
            "peak_footprint_bytes": monitor.peak_footprint_bytes,
            "wall_s": wall_s,
            "relative_error": record["relative_error"],
        }


def main() -> None:
    """Make the checkpoint, pack it and print the figures; exit code 1 when packing fails or exceeds the budget."""
    parser = argparse.ArgumentParser(description="Measure `memsim pack` on a checkpoint made for it.")
    parser.add_argument("--model", choices=list(PRESETS), default="qwen2.5-1.5b", help="whose shapes")
    parser.add_argument("--budget", default="300MB", help="kernel limit on the packing process")
    parser.add_argument("--directory", default="/var/tmp", help="where the temporary directory goes: a disk, not tmpfs")
    options = parser.parse_args()
    config, budget_bytes = preset(options.model), parse_bytes(options.budget)
    try:
        with tempfile.TemporaryDirectory(dir=options.directory) as name:
            directory = Path(name)
            needed = BF16_BYTES * config.n_parameters() + pack_bytes(config, 32)
            require_free(directory, needed, "the checkpoint and its pack")
            source_bytes = write_checkpoint(directory / "checkpoint", config)
            figures = packed(directory / "checkpoint", directory / "pack", budget_bytes)
    except MemsimError as error:
        sys.exit(f"bench_pack: {error}")
    figures |= {"source_bytes": source_bytes, "mb_per_s": source_bytes / 1e6 / float(figures["wall_s"])}
    print(f"{options.model}: {format_bytes(source_bytes, True)} of bf16 under {options.budget}")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
