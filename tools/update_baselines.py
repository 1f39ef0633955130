"""Measure the small runs whose memory the tests hold, and store their records: ``python tools/update_baselines.py``.

Run it after a change that is meant to change memory, look at the difference with ``git diff traces/baselines``, and
commit both together.
"""

import argparse
import tempfile
from pathlib import Path

from memsim.models.config import ModelConfig
from memsim.results import Result, write_result
from memsim.runtime.run import RunConfig, RunProgress, run
from memsim.weights.synthetic import write_synthetic

BASELINES = Path(__file__).parent.parent / "traces" / "baselines"
SCHEDULES = ("mebp", "backprop", "tiled")

# Steps of a second, a working set of tens of megabytes, residuals of four: far more than a reading is off by. A small
# vocabulary, so that both schedules peak in a block, where residuals count.
TOY = ModelConfig(
    model_type="qwen2",
    vocab_size=512,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    attention_bias=True,
)


def baseline_path(schedule: str) -> Path:
    """Return where the record of ``schedule`` is stored."""
    return BASELINES / f"toy-{schedule}.json"


def measure(schedule: str, directory: Path, name: str = "run") -> Result:
    """Run the toy under ``schedule``, really capped, with its files in ``directory``, and return its record."""
    model = directory / "toy"
    if not model.exists():
        write_synthetic(model, TOY, 32, 0, lambda label, done_bytes, total_bytes: None)
    config = RunConfig(
        budget_bytes=400_000_000,
        model=str(model),
        schedule=schedule,
        seq_len=1024,
        steps=2,
        compute="f32",  # what every processor has
        threads=1,  # threads have stacks and buffers of their own, and machines have different numbers of them
        out=directory / f"{name}-{schedule}",
    )
    return run(config, RunProgress()).result


def main() -> None:
    """Store one record a schedule."""
    argparse.ArgumentParser(description="Measure and store the baselines of the tests.").parse_args()
    BASELINES.mkdir(parents=True, exist_ok=True)
    # Not /tmp, which is often in memory: memsim refuses to spill there.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        for schedule in SCHEDULES:
            result = measure(schedule, Path(directory))
            write_result(baseline_path(schedule), result)
            print(f"{baseline_path(schedule)}: {result.exit_reason}, working set {result.peak_working_set_bytes} bytes")


if __name__ == "__main__":
    main()
