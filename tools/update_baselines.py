"""Measure the small runs whose memory the tests hold, and store them: ``python tools/update_baselines.py``.

Run it after a change that is meant to change memory, look at the difference with ``git diff traces/baselines``, and
commit both together.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from memsim.regression.baseline import from_run, write_baseline
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.run_progress import RunProgress

BASELINES = Path(__file__).parent.parent / "traces" / "baselines"
SCHEDULES = ("mebp", "backprop", "tiled")

# Steps of a second, a working set of tens of megabytes, residuals of four: far more than a reading is off by. A small
# vocabulary, so that both schedules peak in a block, where residuals count.
TOY = BASELINES / "toy.json"


def baseline_path(schedule: str) -> Path:
    """Return where the baseline of ``schedule`` is stored."""
    return BASELINES / f"toy-{schedule}.json"


def toy_config(schedule: str) -> RunConfig:
    """Return the settings of the toy's run under ``schedule``."""
    return RunConfig(
        budget_bytes=400_000_000,
        model=str(TOY),
        schedule=schedule,
        seq_len=1024,
        steps=2,
        compute="f32",  # what every processor has
        threads=1,  # threads have stacks and buffers of their own, and machines have different numbers of them
    )


def measure(schedule: str, out: Path) -> RunOutcome:
    """Run the toy under ``schedule``, really capped."""
    return run(replace(toy_config(schedule), out=out), RunProgress())


def main() -> None:
    """Store one baseline a schedule."""
    argparse.ArgumentParser(description="Measure and store the baselines of the tests.").parse_args()
    # Not /tmp, which is often in memory: memsim refuses to spill there.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        for schedule in SCHEDULES:
            done = measure(schedule, Path(directory) / schedule)
            write_baseline(baseline_path(schedule), from_run(done.directory, toy_config(schedule), done.result))
            print(f"{baseline_path(schedule)}: working set {done.result.peak_working_set_bytes} bytes")


if __name__ == "__main__":
    main()
