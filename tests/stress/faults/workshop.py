"""Where a fault is tried: a directory of its own, commands whose processes are known by a mark, and what they leave."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stray_processes import MARK, marked

from memsim.cap.cgroups import find_hierarchy
from memsim.cap.group import Unavailable

ADAPTER = "adapter_model.safetensors"
STEPS = 6
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line that a person sees."""
        lines = (self.err if self.code else self.out).strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: What goes wrong, and where.
        code: The exit code that is right.
        says: What the last line holds.
        tried: Does it in a workshop, and returns how the command ended.
        slow: Whether it takes minutes.
    """

    name: str
    code: int
    says: str
    tried: Callable[["Workshop"], Ending]
    slow: bool = False


@dataclass(slots=True)
class Workshop:
    """One directory, with the kernels of ``kernels``, a cache of memsim that has them compiled."""

    directory: Path
    kernels: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True)
        (self.directory / "text.txt").write_text("".join(f"{number} is a number. " for number in range(900)))
        self.cache.mkdir()
        (self.cache / "kernels").symlink_to(self.kernels / "kernels")
        self.environment = {"MEMSIM_CACHE": str(self.cache), "PYTHONPATH": os.pathsep.join(sys.path)}

    @property
    def place(self) -> Path:
        """Where runs write; nothing else is there."""
        return self.directory / "place"

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def own_kernels(self) -> Path:
        """Give the workshop a copy of the compiled kernels, to be damaged."""
        (self.cache / "kernels").unlink()
        shutil.copytree(self.kernels / "kernels", self.cache / "kernels")
        return self.cache / "kernels"

    def arguments(self, out: Path | str = "out", steps: int = STEPS) -> list[str]:
        own = ["--model", "tiny", "--data", str(self.directory / "text.txt"), "--out", str(self.place / out)]
        own += ["--seq-len", "16", "--threads", "1", "--schedule", "tiled", "--compute", "f32"]
        return ["run", "--budget", "400MB", *own, "--steps", str(steps), "--checkpoint-every", "2"]

    def popen(self, *arguments: object, **more: Any) -> "subprocess.Popen[str]":
        """Start a command; ``more`` goes to ``subprocess``; ``env`` is added to what every command has."""
        bare = {key: value for key, value in os.environ.items() if key not in more.pop("without", ())}
        environment = bare | self.environment | {MARK: self.directory.name} | more.pop("env", {})
        command = [sys.executable, "-m", "memsim", *map(str, arguments)]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.directory}
        return subprocess.Popen(command, env=environment, text=True, errors="replace", **streams | more)

    def memsim(self, *arguments: object, **more: Any) -> Ending:
        with self.popen(*arguments, **more) as process:
            out, err = process.communicate(timeout=900)
        return Ending(process.returncode, out or "", err or "")

    def shell(self, line: str, *arguments: object, **more: Any) -> Ending:
        """Run a line of shell in which ``"$@"`` is the command: for streams and limits."""
        command = [sys.executable, "-m", "memsim", *map(str, arguments)]
        environment = os.environ | self.environment | {MARK: self.directory.name} | more.pop("env", {})
        done = subprocess.run(
            ["/bin/bash", "-c", line, "bash", *command],
            env=environment, cwd=self.directory, capture_output=True, text=True, errors="replace", check=False, **more
        )  # fmt: skip
        return Ending(done.returncode, done.stdout, done.stderr)

    def reference(self) -> bytes:
        """Return the adapter of an undisturbed run."""
        done = self.memsim(*self.arguments("reference"))
        assert done.code == 0, done.err
        adapter = (self.place / "reference" / ADAPTER).read_bytes()
        shutil.rmtree(self.place / "reference")
        return adapter

    def goes_on(self, out: str, adapter: bytes) -> None:
        """Go on with a run, which must end with the bits of ``adapter``."""
        again = self.memsim("run", "--resume", self.place / out)
        assert again.code == 0, again.err
        assert (self.place / out / ADAPTER).read_bytes() == adapter, "other bits after it went on"

    def left(self) -> list[str]:
        """Return what commands left that they should not: hidden files, processes, groups."""
        files = [
            str(path.relative_to(self.directory)) for path in self.directory.rglob(".*") if "kernels" not in path.parts
        ]
        processes = [f"process {process.pid}" for process in marked(self.directory.name)]
        return sorted([*files, *processes, *self.groups()])

    def groups(self) -> list[str]:
        """Return the control groups of memsim's that no living process made."""
        found = []
        for version in (1, 2):
            try:
                top = find_hierarchy(version).own
            except Unavailable:
                continue
            found += [path.name for path in top.rglob("memsim-*") if path.is_dir() and not _alive(path.name)]
        return found


def _alive(name: str) -> bool:
    return any(part.isdigit() and Path(f"/proc/{part}").exists() for part in name.split("-"))


def wait_for(process: "subprocess.Popen[str]", start: str) -> list[str]:
    """Read a command's progress up to the line that begins with ``start``."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(f"no {start!r} in {''.join(lines)}")
