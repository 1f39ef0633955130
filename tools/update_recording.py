"""Record the small run that tests replay, without this machine's paths: ``python tools/update_recording.py``.

Run it after a change that is meant to change what a step allocates or executes, look at what changed in
``memsim replay traces/recorded-toy``, and commit both together.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from memsim.file_names import CAPTURE_FILE, EVENTS_FILE, PROGRAM_FILE, RESULT_FILE
from memsim.files import atomic_write
from memsim.models.config import ModelConfig
from memsim.result_file import read_result, write_result
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig
from memsim.runtime.run_progress import RunProgress
from memsim.simulator.recordings.recording import read_recording
from memsim.weights.synthetic import write_synthetic

ROOT = Path(__file__).parent.parent
RECORDING = ROOT / "traces" / "recorded-toy"
FILES = (CAPTURE_FILE, PROGRAM_FILE, RESULT_FILE, EVENTS_FILE)

MODEL = ModelConfig(
    model_type="llama",
    vocab_size=256,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    attention_bias=False,
)

_PRIVATE = re.compile(rb"/(?:root|home|Users|work|mnt|opt|var|tmp|srv)/[^\0]{0,80}")


def record(directory: Path) -> Path:
    """Record the run, really capped, with its files in ``directory``; return its own."""
    model = directory / "toy"
    write_synthetic(model, MODEL, 32, 0, lambda label, done_bytes, total_bytes: None)
    config = RunConfig(
        budget_bytes=400_000_000,
        model=str(model),
        seq_len=64,
        steps=3,
        compute="f32",
        threads=1,
        out=directory / "run",
        record=True,
    )
    return run(config, RunProgress()).directory


def scrub(capture: Path) -> None:
    """Replace the paths in an uncompressed capture; its strings end with a zero byte, so their lengths may change.

    Raises:
        SystemExit: Something that looks like a path of this machine is left.
    """
    data = capture.read_bytes().rstrip(b"\0")  # memray leaves the end of the last page empty
    names = dict.fromkeys(filter(None, sys.path), "path")
    names |= {str(ROOT): "checkout", sys.prefix: "venv", sys.base_prefix: "python"}
    names |= {os.path.realpath(path): name for path, name in names.items()}
    for path, name in sorted(names.items(), key=lambda item: -len(item[0])):
        data = data.replace(path.encode(), name.encode())
    if left := _PRIVATE.search(data):
        raise SystemExit(f"the capture still holds {left[0]!r}")
    with atomic_write(capture) as file:
        file.write(data)


def main() -> None:
    """Record, scrub, check that nothing else changed, store."""
    argparse.ArgumentParser(description="Record and store the small run that tests replay.").parse_args()
    # Not /tmp, which is often in memory: memsim refuses to spill there.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        run_directory = record(Path(directory))
        before = read_recording(run_directory)
        scrub(run_directory / CAPTURE_FILE)
        result = run_directory / RESULT_FILE
        write_result(result, replace(read_result(result), request=None))  # it names paths
        after = read_recording(run_directory)
        if (before.nodes, before.before) != (after.nodes, after.before):
            raise SystemExit("scrubbing changed the recording")
        RECORDING.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(run_directory / name, RECORDING / name)
    print(f"{RECORDING}: {after.n_steps} steps of {len(after.nodes)} nodes, peak {after.peak_bytes:,} bytes")


if __name__ == "__main__":
    main()
