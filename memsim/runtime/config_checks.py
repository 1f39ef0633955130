"""What is refused of a run's settings by themselves, before any model is looked at."""

from pathlib import Path

import psutil

from memsim.cap.processors import available_threads
from memsim.errors import InputError, UsageError
from memsim.files import require_disk
from memsim.runtime.config import RunConfig
from memsim.schedules.zeroth_order import METHODS, estimator
from memsim.units import format_bytes


def check_new(config: RunConfig) -> None:
    """Check the files that a new run names; a resumed one has their tokens.

    Raises:
        InputError: ``out`` exists, or a text does not.
    """
    if config.out is not None and config.out.exists():
        raise InputError(f"--out {config.out} exists; choose a directory that does not")
    for path in (config.data, config.eval_data):
        if path is not None and not path.is_file():
            raise InputError(f"no text file at {path}")


def check(config: RunConfig, out: Path) -> None:
    """Check settings by themselves and against this machine.

    Raises:
        UsageError: A value that can never work.
        InputError: The scratch directory, or ``out`` in its place, cannot serve.
    """
    ram = psutil.virtual_memory().total
    if config.budget_bytes <= 0:
        raise UsageError("--budget 0 cannot hold a process; write a size such as 1GB")
    if config.budget_bytes > ram:
        raise UsageError(
            f"--budget {format_bytes(config.budget_bytes, config.decimal)} is above this machine's "
            f"{format_bytes(ram, config.decimal)} of RAM"
        )
    limits = {"--seq-len": config.seq_len, "--steps": config.steps, "--accumulate": config.accumulate}
    limits |= {"--eval-sequences": config.eval_sequences, "--checkpoint-every": config.checkpoint_every}
    for option, value in limits.items():
        if value < 1:
            raise UsageError(f"{option} {value} is below 1")
    for option, value in {
        "--seed": config.seed,
        "--eval-every": config.eval_every,
        "--threads": config.threads,
    }.items():
        if value < 0:
            raise UsageError(f"{option} {value} is below 0")
    if config.threads > (available := available_threads()):
        raise UsageError(f"--threads {config.threads} is above the {available} processors of this machine")
    if config.schedule in METHODS:
        estimator(config.schedule, config.zeroth_order, config.optimizer.lr, config.accumulate)
    if config.verify not in ("first", "full"):
        raise UsageError(f"verify {config.verify!r} must be first or full")
    if config.record and config.eval_data is not None:
        raise UsageError("--record records training steps alone; leave out --eval-data")
    if config.record and config.schedule == "lcsb":
        raise UsageError("--record needs steps that are all alike, but in those of lcsb other blocks have their turn")
    if config.task is None and not config.template:
        raise UsageError("--no-template needs --task")
    if config.task is not None and config.data is None:
        raise UsageError("--task needs --data: a JSONL file of its examples")
    for option, asked in {"--eval-every": config.eval_every, "--eval-first": config.eval_first}.items():
        if asked and config.eval_data is None:
            raise UsageError(f"{option} needs --eval-data")
    if config.scratch is not None and not config.scratch.is_dir():
        raise InputError(f"the scratch directory {config.scratch} does not exist; create it or choose another")
    require_disk(config.scratch or out, "the scratch")
