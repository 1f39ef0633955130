"""Commands whose disk is full from one of their writes on: what they say, what they leave, and that it goes on."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stray_processes import MARK, marked

from capped_runs import memsim_command

ADAPTER = "adapter_model.safetensors"
FAULTS = Path(__file__).parent / "full_disk"
Role = Literal["command", "worker", "tokenize"]
Mode = Literal["once", "stays"]
_SETTINGS = ["--seq-len", 8, "--lora-rank", 4, "--threads", 1, "--schedule", "tiled", "--checkpoint-every", 2]
_STEPS = 4


@dataclass(slots=True)
class Tally:
    """What happened: writes that failed by role and kind, and how the commands ended."""

    failed: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)


class FullDisks:
    """Runs of ``model`` in ``directory`` that are told that the disk is full.

    Attributes:
        tally: What happened.
    """

    def __init__(self, model: Path, directory: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.tally = Tally()
        self._say = say
        self._model, self._directory = model, directory
        self._mark = f"{os.getpid()}-{directory.name}"
        self._out, self._marker = directory / "place" / "out", directory / "failed"
        (directory / "text.txt").write_text("".join(f"{number} is a number. " for number in range(500)))
        reference, half = directory / "reference", directory / "half"
        assert self._run("run", *self._arguments(reference, _STEPS)).returncode == 0
        assert self._run("run", *self._arguments(half, _STEPS // 2)).returncode == 0
        self._expected = (reference / ADAPTER).read_bytes()
        self._half = half

    def _arguments(self, out: Path, steps: int) -> list[object]:
        own = ["--model", self._model, "--data", self._directory / "text.txt", "--out", out, "--steps", steps]
        return ["--budget", "400MB", *own, *_SETTINGS]

    def _run(self, *arguments: object, fault: str = "") -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {MARK: self._mark, "PYTHONDONTWRITEBYTECODE": "1"}
        if fault:
            paths = [str(FAULTS), *filter(None, [environment.get("PYTHONPATH")])]
            environment |= {"MEMSIM_FULL_DISK": fault, "PYTHONPATH": os.pathsep.join(paths)}
        command = memsim_command(*arguments)
        return subprocess.run(
            command, env=environment, cwd=self._directory, capture_output=True, text=True, check=False
        )

    def each(self, role: Role, mode: Mode, resumed: bool, most: int | None) -> None:
        """Let writes of ``role`` fail, one in each of as many runs.

        Args:
            role: Whose writes.
            mode: Whether the disk stays full.
            resumed: Whether the command goes on with a run that has a checkpoint, instead of beginning one.
            most: How many of the writes fail, evenly spread; None for all.
        """
        done = self._go(role, 0, mode, resumed)
        assert done.returncode == 0, done.stderr
        self._check_finished()
        n_writes = int(self._marker.read_text())
        assert n_writes >= (most or 1)
        chosen = n_writes if most is None else most
        for number in range(chosen):
            self._fail(role, 1 + number * n_writes // chosen, mode, resumed)

    def _go(self, role: Role, k: int, mode: Mode, resumed: bool) -> "subprocess.CompletedProcess[str]":
        """Begin a run, or go on with one, whose k-th write fails; none if k is 0."""
        self._marker.unlink(missing_ok=True)
        shutil.rmtree(self._out.parent, ignore_errors=True)
        self._out.parent.mkdir()
        if resumed:
            shutil.copytree(self._half, self._out)
        arguments = ["--resume", self._out, "--steps", _STEPS] if resumed else self._arguments(self._out, _STEPS)
        return self._run("run", *arguments, fault=f"{role}:{k}:{mode}:{self._marker}")

    def _fail(self, role: Role, k: int, mode: Mode, resumed: bool) -> None:
        done = self._go(role, k, mode, resumed)
        failed = self._marker.read_text()
        what = f"{role} {k} {mode} {'resumed' if resumed else 'begun'}: {failed}\n{done.stderr}"
        self.tally.failed[f"{role}: {failed.split()[0]}"] += 1
        self.tally.endings[f"exit code {done.returncode}"] += 1
        self._check_ending(done, what)
        self._check_leftovers(what, resumed)
        self._say(f"{what.splitlines()[0]}; {self.tally.failed.total()} so far, all as they should")

    def _check_ending(self, done: "subprocess.CompletedProcess[str]", what: str) -> None:
        assert "Traceback" not in done.stderr, what
        assert done.returncode in (0, 1), what
        if done.returncode:
            *before, last = done.stderr.splitlines()
            assert last.startswith("memsim: "), what
            assert "No space left on device" in last or " is full" in last, what
            assert not [line for line in before if line.startswith("memsim: ")], what

    def _check_leftovers(self, what: str, resumed: bool) -> None:
        """Check that nothing is left but a run that goes on, and that it does."""
        assert marked(self._mark) == [], what
        place = self._out.parent
        assert {path.name for path in place.iterdir()} <= {"out"}, what
        assert not [path for path in place.rglob(".*") if path.name != ".lock"], what
        if not self._out.exists():
            assert not resumed, what
            return
        again = self._run("run", "--resume", self._out, *(["--steps", _STEPS] if resumed else []))
        assert again.returncode == 0, f"{what}\nand then {again.stderr}"
        self._check_finished()

    def _check_finished(self) -> None:
        assert (self._out / ADAPTER).read_bytes() == self._expected
        assert not [path for path in self._out.rglob(".*")]
        assert {path.name for path in self._out.parent.iterdir()} == {"out"}
