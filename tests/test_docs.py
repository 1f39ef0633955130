"""What the documents say can be done can be done: commands parse, Python runs, links lead somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

from capped_runs import cache
from memsim.cli import cli

assert cache  # a fixture, found by name
ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "traces").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(memsim [a-z][^`]*)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def commands(text: str) -> list[str]:
    """Return the command lines of memsim in a document, in blocks and in sentences."""
    lines = [line for kind, body in BLOCK.findall(text) if kind in ("sh", "console", "bash") for line in _joined(body)]
    found = [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith("memsim ")]
    return found + [line for line in INLINE.findall(text.replace("\n", " ")) if "|" not in line and "..." not in line]


def _joined(body: str) -> list[str]:
    return body.replace("\\\n", " ").splitlines()


CASES = [(path, line) for path in DOCUMENTS for line in commands(path.read_text())]


def test_there_are_documents_with_commands() -> None:
    assert len(DOCUMENTS) >= 8
    assert len(CASES) >= 20


@pytest.mark.parametrize(("path", "line"), CASES, ids=[f"{path.name}: {line[:60]}" for path, line in CASES])
def test_commands_have_the_options_that_they_are_given(path: Path, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    for mark in (">", "2>", "|", "&&", ";"):
        if mark in words:
            words = words[: words.index(mark)]
    command: click.Command = cli
    context = click.Context(cli, info_name="memsim")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{path.name} names a command {words[0]!r}, which there is not"
        command, words = found, words[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help",
        "-h",
        "--version",
    }
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
    assert unknown == [], f"{path.name}: memsim {command.name} has no {unknown}"


PYTHON = [
    pytest.param(body, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, (kind, body) in enumerate(BLOCK.findall(path.read_text()))
    if kind == "python"
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnknownMarkWarning")
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("body", PYTHON)
def test_python_in_documents_runs(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traces").symlink_to(ROOT / "traces")
    names: dict[str, object] = {}
    exec(compile(body, "document", "exec"), names)
    for name, value in list(names.items()):
        if name.startswith("test_") and callable(value):
            value()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    missing = [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]
    assert missing == []
