"""The ``memsim`` command in this process, as a user gets it: exit code, stdout and stderr."""

import sys
from dataclasses import dataclass

import pytest

from memsim.cli import main


@dataclass(frozen=True, slots=True)
class Done:
    """What a command ended with."""

    code: int
    out: str
    err: str


class Command:
    """Runs ``memsim``."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object) -> Done:
        """Run ``memsim`` with ``arguments``, which must not end in a traceback."""
        self._monkeypatch.setattr(sys, "argv", ["memsim", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = self._capsys.readouterr()
        return Done(code, printed.out, printed.err)

    def refused(self, *arguments: object) -> str:
        """Run ``memsim``, which must refuse with exit code 1; return its last line."""
        done = self(*arguments)
        assert (done.code, done.out) == (1, ""), done
        line = done.err.splitlines()[-1]
        assert line.startswith("memsim: "), done
        return line
