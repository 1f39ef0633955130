"""Capped runs of a small model whose working set is some megabytes: what the tests of ``memsim run`` share."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numba
import psutil
import pytest

from memsim.cap.open import ENFORCEMENTS, open_cap
from memsim.models.lora import LoraConfig
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig
from memsim.runtime.outcome import RunOutcome
from memsim.runtime.run_progress import RunProgress, StepDone
from memsim.weights.pack import Pack
from memsim.weights.synthetic import write_synthetic
from toy import toy_config

MB = 10**6
BUDGET = 400 * MB
LORA = LoraConfig(rank=4, alpha=8)
RUN_FILES = {"result.json", "events.jsonl", "program.jsonl", "checkpoints"}
CHECKPOINT_FILE = re.compile(r"checkpoints/(run\.json|steps\.jsonl|(tokens|eval)\.bin|step-\d{8}\.(json|safetensors))")
ADAPTER_FILES = {"adapter_model.safetensors", "adapter_config.json"}


def write_model(directory: Path, n_layers: int = 4) -> Pack:
    """Write a pack; with four layers ``mebp`` over 1024 tokens takes 27 MB beside the interpreter."""
    config = toy_config(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=n_layers,
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


def private_cache(directory: Path) -> Path:
    """Make ``directory`` a cache with the shared kernels and packs of its own."""
    directory.mkdir()
    (directory / "kernels").symlink_to(shared_cache() / "kernels")
    return directory


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this test, and the processes it starts, the shared cache."""
    directory = shared_cache()
    monkeypatch.setenv("MEMSIM_CACHE", str(directory))
    return directory


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Give kernels in this process one thread: two that wait for each other on a busy machine are very slow."""
    default = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(default)


def config_for(model: Path, out: Path | None, **changes: object) -> RunConfig:
    """Return the settings of a short run; ``changes`` are ``RunConfig``'s fields."""
    settings: dict[str, object] = {"budget_bytes": BUDGET, "model": str(model), "out": out}
    if changes.get("scheme", "lora") == "lora":
        settings["lora"] = LORA
    # One thread: two that wait for each other on a busy machine make tiny kernels very slow.
    settings |= {"seq_len": 256, "steps": 2, "threads": 1}
    return RunConfig(**(settings | changes))  # type: ignore[arg-type]


def run_toy(model: Path, out: Path | None, progress: RunProgress | None = None, **changes: object) -> RunOutcome:
    """Run it, capped, in a child of this process."""
    return run(config_for(model, out, **changes), progress or RunProgress())


@contextmanager
def waiting_after_steps() -> Iterator[Callable[[int], None]]:
    """Let the workers that are started here wait after each step, until it is given to what is yielded.

    A step of a toy takes milliseconds: without this, a worker has done some more before it meets what a test does.
    """
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        # Executed by every Python that starts with this directory on its path.
        Path(directory, "sitecustomize.py").write_text(
            "import sys\n"
            "if any('memsim.execution.worker' in word for word in sys.orig_argv):\n"
            "    import os, time\n"
            "    from memsim.execution.saver import Saver\n"
            "    after = Saver.after\n"
            "    def waiting(self, step):\n"
            f"        while not os.path.exists({directory!r} + f'/{{step}}'): time.sleep(0.002)\n"
            "        return after(self, step)\n"
            "    Saver.after = waiting\n"
        )
        patch.setenv("PYTHONPATH", os.pathsep.join([directory, *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield lambda step: Path(directory, str(step)).touch()


def run_in_step(model: Path, out: Path, progress: RunProgress, **changes: object) -> RunOutcome:
    """Run it as `run_toy` does, but no step begins before ``progress`` has heard of the one before it."""
    with waiting_after_steps() as go_on:

        def step(done: StepDone) -> None:
            progress.step(done)
            go_on(done.step)

        return run_toy(model, out, replace(progress, step=step), **changes)


def memsim_command(*arguments: object) -> list[str]:
    """Return the command line of ``memsim`` as a user types it."""
    return [sys.executable, "-m", "memsim", *map(str, arguments)]


def start_command(model: Path, directory: Path, *arguments: object) -> "subprocess.Popen[str]":
    """Start ``memsim run`` on ``model`` in a process of its own, from ``directory``; stdout and stderr are pipes."""
    command = memsim_command("run", "--model", model, "--lora-rank", 4, *arguments)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def run_command(model: Path, directory: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run ``memsim run`` on ``model`` in a process of its own, from ``directory``."""
    with start_command(model, directory, *arguments) as process:
        printed, complaint = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, printed, complaint)


def best_enforcement() -> str:
    """Return what caps a process on this machine."""
    with open_cap(BUDGET) as cap:
        assert cap.enforcement in ENFORCEMENTS
        return cap.enforcement


def groups(pid: int) -> list[Path]:
    """Return the cgroups that the memsim of process ``pid`` made, and that still exist."""
    with open_cap(BUDGET) as cap:
        own = cap.group_path
        return sorted(set(own.parent.glob(f"memsim-{pid}-*")) - {own}) if own else []


def workers() -> list[psutil.Process]:
    """Return the worker processes that descend from this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "memsim.execution.worker" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def files_in(directory: Path) -> set[str]:
    """Return the paths below ``directory``, hidden ones too, except what a resumed run needs."""
    names = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    return {name for name in names if not CHECKPOINT_FILE.fullmatch(re.sub(r"^.*/(?=checkpoints/)", "", name))}


def left_behind(out: Path) -> list[object]:
    """Return what a run must not leave: processes, groups, unfinished files."""
    names = files_in(out) - RUN_FILES - ADAPTER_FILES if out.exists() else set()
    return [*workers(), *groups(os.getpid()), *sorted(names)]
