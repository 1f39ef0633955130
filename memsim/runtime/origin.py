"""Where a run came from: when it began, by which commands, from which files, told so that it is true everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from memsim.results import Request
from memsim.run_directory.settings_file import file_digest
from memsim.runtime.config import RunConfig
from memsim.runtime.settings import recorded_settings
from memsim.weights.cache import identifier
from memsim.weights.pack import BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How a run came to be; it is kept with the run, so that a resumed one knows it.

    Attributes:
        started: When its first command began: ISO 8601, UTC.
        commands: Its command lines so far; a call from Python leaves none.
        files: SHA-256 of each file that was named: ``data``, ``eval_data``, ``task``.
    """

    started: str
    commands: tuple[str, ...]
    files: dict[str, str]

    def resumed_by(self, command: str) -> "Origin":
        """Return the same after one more command."""
        return replace(self, commands=(*self.commands, command)) if command else self

    def request(self, config: RunConfig, texts: Mapping[str, str]) -> Request:
        """Return what a record says of it; ``texts`` are the digests of the files of token ids."""
        files = self.files | dict(texts)
        return Request(settings=recorded_settings(config), files=files, started=self.started, commands=self.commands)


def begin(config: RunConfig, command: str) -> Origin:
    """Return the origin of a run that begins now.

    Raises:
        InputError: A file that it names cannot be read.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    named = {"data": config.data, "eval_data": config.eval_data, "task": _task_file(config)}
    files = {name: file_digest(path) for name, path in named.items() if path is not None}
    return Origin(started=started, commands=(command,) if command else (), files=files)


def located(config: RunConfig) -> RunConfig:
    """Return the same run with names that mean the same in every directory: absolute paths, presets and hub ids."""

    def absolute(path: Path | None) -> Path | None:
        return path.absolute() if path is not None else None

    task = _task_file(config)
    tokenizer = None if config.tokenizer in (None, BYTES) else Path(str(config.tokenizer))
    return replace(
        config,
        model=identifier(config.model),
        task=str(task.absolute()) if task else config.task,
        data=absolute(config.data),
        tokenizer=str(tokenizer.absolute()) if tokenizer else config.tokenizer,
        eval_data=absolute(config.eval_data),
        scratch=absolute(config.scratch),
        out=absolute(config.out),
    )


def _task_file(config: RunConfig) -> Path | None:
    """Return the file of the run's task; None for a task that comes with memsim, or none."""
    return Path(config.task) if config.task is not None and config.task.endswith(".toml") else None
