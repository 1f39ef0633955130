"""Capped runs of a small model whose working set is some megabytes: what the tests of ``memsim run`` share."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from memsim.models.lora import LoraConfig
from memsim.runtime.cap import ENFORCEMENTS, open_cap
from memsim.runtime.run import RunConfig, RunOutcome, RunProgress, run
from memsim.weights.pack import Pack
from memsim.weights.synthetic import write_synthetic
from toy import toy_config

MB = 10**6
BUDGET = 400 * MB
LORA = LoraConfig(rank=4, alpha=8)
RUN_FILES = {"result.json", "events.jsonl", "program.jsonl"}
ADAPTER_FILES = {"adapter_model.safetensors", "adapter_config.json"}


def write_model(directory: Path) -> Pack:
    """Write the pack of a four-layer model; ``mebp`` over 1024 tokens takes 27 MB beside the interpreter."""
    config = toy_config(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
    )
    return write_synthetic(directory, config, 32, 0, lambda *_: None)


def shared_cache() -> Path:
    """Return a cache directory for memsim in which the kernels are those that the tests themselves compile."""
    kernels = Path(os.environ["NUMBA_CACHE_DIR"]).absolute()
    kernels.mkdir(parents=True, exist_ok=True)
    cache = kernels.with_name(f"{kernels.name}-memsim")
    cache.mkdir(exist_ok=True)
    link = cache / "kernels"
    if not link.is_symlink():
        link.symlink_to(kernels)
    return cache


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this test, and the processes it starts, the shared cache."""
    directory = shared_cache()
    monkeypatch.setenv("MEMSIM_CACHE", str(directory))
    return directory


def config_for(model: Path, out: Path | None, **changes: object) -> RunConfig:
    """Return the settings of a short run; ``changes`` are ``RunConfig``'s fields."""
    settings: dict[str, object] = {"budget_bytes": BUDGET, "model": str(model), "out": out, "lora": LORA}
    # One thread: two that wait for each other on a busy machine make tiny kernels very slow.
    settings |= {"seq_len": 256, "steps": 2, "threads": 1}
    return RunConfig(**(settings | changes))  # type: ignore[arg-type]


def run_toy(model: Path, out: Path | None, progress: RunProgress | None = None, **changes: object) -> RunOutcome:
    """Run it, capped, in a child of this process."""
    return run(config_for(model, out, **changes), progress or RunProgress())


def memsim_command(*arguments: object) -> list[str]:
    """Return the command line of ``memsim`` as a user types it."""
    return [sys.executable, "-m", "memsim", *map(str, arguments)]


def run_command(model: Path, directory: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run ``memsim run`` on ``model`` in a process of its own, from ``directory``."""
    command = memsim_command("run", "--model", model, "--lora-rank", 4, *arguments)
    return subprocess.run(
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300
    )


def best_enforcement() -> str:
    """Return what caps a process on this machine."""
    with open_cap(BUDGET) as cap:
        assert cap.enforcement in ENFORCEMENTS
        return cap.enforcement


def groups() -> list[Path]:
    """Return the cgroups of memsim that exist now where this process would make one."""
    with open_cap(BUDGET) as cap:
        own = cap.group_path
    return sorted(own.parent.glob("memsim-*")) if own else []


def workers() -> list[psutil.Process]:
    """Return the worker processes that descend from this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "memsim.runtime.worker" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def files_in(directory: Path) -> set[str]:
    """Return the paths below ``directory``, hidden ones too."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}
