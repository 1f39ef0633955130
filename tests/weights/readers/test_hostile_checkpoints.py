"""Hostile files given to the program itself: one line on stderr, exit code 1, nothing left behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from toy_checkpoints import TOY, source_tensors, write_checkpoint

NAME = "model.layers.0.mlp.up_proj.weight"


def rewrite_header(directory: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Let ``change`` edit the parsed header of the weights file, of which the data stay."""
    path = directory / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def long_header(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])


def overlapping_tensors(directory: Path) -> None:
    def change(header: dict) -> None:
        start, end = header[NAME]["data_offsets"]
        header[NAME]["data_offsets"] = [start - 4, end - 4]

    rewrite_header(directory, change)


def path_out_of_the_directory(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory.parent / "model.safetensors")
    index = {"weight_map": dict.fromkeys(source_tensors(TOY), "../model.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def wrong_dtype(directory: Path) -> None:
    write_checkpoint(directory, TOY, source_tensors(TOY) | {NAME: np.zeros((72, 40), np.int8)})


def nan_weights(directory: Path) -> None:
    tensors = source_tensors(TOY)
    tensors[NAME][3, 5] = np.nan
    write_checkpoint(directory, TOY, tensors)


HOSTILE = {
    long_header: "is truncated",
    overlapping_tensors: "tensor '.*' (overlaps the tensor|leaves a hole) before it",
    path_out_of_the_directory: "'../model.safetensors', the shard of '.*', is not a safetensors file name",
    wrong_dtype: f"'{NAME}' is i8; memsim packs bf16, f16, f32",
    nan_weights: f"{NAME} holds NaN or infinite weights",
}


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_the_program_refuses_it_in_one_line(tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    source = write_checkpoint(tmp_path / "hf", TOY)
    spoil(source)
    command = [sys.executable, "-m", "memsim", "pack", str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *progress, error = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert all(line.startswith("packing: ") for line in progress)  # no traceback
    assert error.startswith("memsim: ")
    assert re.search(HOSTILE[spoil], error), error
    assert not (tmp_path / "out").exists()
