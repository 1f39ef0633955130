"""Killing a run at random moments, and going on with it, again and again."""

import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stray_processes import MARK, marked

from capped_runs import memsim_command
from memsim.cap.footprint import start_time
from memsim.cap.open import open_cap

ADAPTER = "adapter_model.safetensors"
STEPS = 50
_DEATH_S = 20.0


@dataclass(slots=True)
class Tally:
    """What happened so far; every field counts."""

    kills_of_parent: int = 0
    kills_of_worker: int = 0
    resumed: int = 0
    begun: int = 0
    finished: int = 0

    @property
    def kills(self) -> int:
        return self.kills_of_parent + self.kills_of_worker


class Kills:
    """Runs of ``model`` in ``directory`` that are killed at random moments.

    Attributes:
        tally: What happened.
    """

    def __init__(self, model: Path, directory: Path, seed: int) -> None:
        self.tally = Tally()
        self._model, self._directory = model, directory
        self._random = random.Random(seed)
        self._mark = f"{os.getpid()}-{seed}"
        self._out = directory / "out"
        self._seconds = self._reference()

    def _arguments(self, out: Path) -> list[object]:
        settings = ["--seq-len", 8, "--lora-rank", 4, "--threads", 1, "--schedule", "tiled"]
        settings += ["--steps", STEPS, "--checkpoint-every", 7]
        return ["run", "--budget", "400MB", "--model", self._model, "--out", out, *settings]

    def _start(self, *arguments: object) -> "subprocess.Popen[bytes]":
        environment = os.environ | {MARK: self._mark}
        log = (self._directory / "stderr").open("wb")
        with log:
            return subprocess.Popen(
                memsim_command(*arguments), env=environment, cwd=self._directory, stdout=subprocess.DEVNULL, stderr=log
            )

    def _reference(self) -> float:
        """Run once to the end; return the seconds that it took."""
        start = time.monotonic()
        reference = self._directory / "reference"
        assert self._start(*self._arguments(reference)).wait() == 0, self._said()
        self._expected = (reference / ADAPTER).read_bytes()
        return time.monotonic() - start

    def _said(self) -> str:
        return (self._directory / "stderr").read_text(errors="replace")

    def until(self, n_kills: int, say: Callable[[str], None] = lambda text: None) -> None:
        """Kill ``n_kills`` times, and let the last run finish; fail on anything left behind."""
        while self.tally.kills < n_kills or self._out.exists():
            self._go(kill=self.tally.kills < n_kills)
            say(f"{self.tally}")

    def _go(self, kill: bool) -> None:
        """Begin or go on with the run; kill it after a random time, or let it finish."""
        if self._out.exists():
            self.tally.resumed += 1
            process = self._start("run", "--resume", self._out)
        else:
            self.tally.begun += 1
            process = self._start(*self._arguments(self._out))
        killed = kill and self._kill_some_time(process)
        code = process.wait()
        assert "Traceback" not in self._said(), self._said()
        if not killed and code == 0:
            self._finish()
        else:
            assert killed, f"exit code {code}: {self._said()}"
            self._check_leftovers(process.pid)

    def _kill_some_time(self, process: "subprocess.Popen[bytes]") -> bool:
        """Kill the command, or its worker, at a random moment; return whether it was still at work."""
        delay = self._random.uniform(0, 1.1 * self._seconds)
        of_worker = self._random.random() < 0.5
        try:
            process.wait(delay)
            return False
        except subprocess.TimeoutExpired:
            pass
        if of_worker:
            for child in marked(self._mark):
                if "memsim.execution.worker" in child.cmdline():
                    child.kill()
                    self.tally.kills_of_worker += 1
                    return True
        process.kill()
        self.tally.kills_of_parent += 1
        return True

    def _check_leftovers(self, pid: int) -> None:
        """Check that a killed command left no process, no scratch, and at most an empty group."""
        end = time.monotonic() + _DEATH_S
        while (alive := marked(self._mark)) and time.monotonic() < end:
            time.sleep(0.02)
        assert alive == [], "processes survive the command that started them"
        with open_cap(1 << 30) as cap:  # which removes what dead commands left
            parent = cap.group_path.parent if cap.group_path else None
            if parent is not None:
                left = [path for path in parent.glob("memsim-*") if start_time(int(path.name.split("-")[1])) is None]
                assert left == []
        names = {path.name for path in self._directory.iterdir()} - {"reference", "stderr", "out"}
        assert all(name.startswith(".memsim-") for name in names), names  # a run that had no name yet: next one removes
        if self._out.exists():
            assert (self._out / "checkpoints" / "run.json").is_file()
            assert not [path for path in self._out.rglob("*") if "scratch" in path.name]

    def _finish(self) -> None:
        """Compare a finished run with the one that was never killed, and remove it."""
        assert (self._out / ADAPTER).read_bytes() == self._expected
        hidden = [str(path) for path in self._out.rglob(".*")]
        assert hidden == [], hidden
        names = {path.name for path in self._directory.iterdir()}
        assert names == {"reference", "stderr", "out"}, names
        self.tally.finished += 1
        trash = self._out.rename(self._directory / "done")
        for path in sorted(trash.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        trash.rmdir()
