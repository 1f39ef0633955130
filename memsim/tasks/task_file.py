"""Task files: TOML, untrusted, the same format for those that come with memsim and for a user's own."""

import re
from pathlib import Path

from memsim.errors import InputError
from memsim.json_decode import decode
from memsim.json_file import shown
from memsim.tasks.task import PLACEHOLDER, Task
from memsim.toml_file import read_toml

MAX_OPTIONS = 256

_MAX_BYTES = 64 << 10
_DIRECTORY = Path(__file__).parent
_NAME = re.compile(r"[a-z0-9_]+")


def built_in() -> list[str]:
    """Return the names of the tasks that come with memsim."""
    return sorted(path.stem for path in _DIRECTORY.glob("*.toml"))


def find_task(name: str) -> Task:
    """Return the task that ``--task name`` means: one that comes with memsim, or a file.

    Raises:
        InputError: No such task or file, or a file that breaks a rule of the format; the message says which.
    """
    if name in built_in():
        return read_task(_DIRECTORY / f"{name}.toml")
    if name.endswith(".toml"):
        return read_task(Path(name))
    raise InputError(f"no task called {shown(name)}; tasks: {', '.join(built_in())}; or the path of a .toml file")


def read_task(path: Path) -> Task:
    """Read and check a task file.

    Raises:
        InputError: It cannot be read, is no TOML, or breaks a rule of the format.
    """
    task = decode(Task, read_toml(path, _MAX_BYTES, "a task file"), str(path))
    _check_options(task, str(path))
    _check_fields(task, str(path))
    _check_texts(task, str(path))
    return task


def _check_options(task: Task, where: str) -> None:
    count = len(task.options)
    if not 2 <= count <= MAX_OPTIONS:
        raise InputError(f"{where}: a task has 2 to {MAX_OPTIONS} options, not {count}")
    if len(task.labels) != count or len(set(task.labels)) != count:
        raise InputError(f"{where}: labels must be {count} different values, one for each option")
    if task.kind == "classification" and (len(set(task.options)) != count or any(map(_names, task.options))):
        raise InputError(f"{where}: the options of a classification are different words, the same for all examples")


def _check_fields(task: Task, where: str) -> None:
    for name in task.fields:
        if not _NAME.fullmatch(name) or name in ("option", task.label):
            raise InputError(f"{where}: {shown(name)} cannot be the name of a field; use small letters, not the label")
    with_words = {name for name, form in task.fields.items() if form == "word"}
    if with_words != set(task.words) or not all(task.words.values()):
        names = ", ".join(sorted(with_words ^ set(task.words))) or "an empty table"
        raise InputError(f"{where}: every field of form 'word' needs a table of words, and no other: {shown(names)}")


def _check_texts(task: Task, where: str) -> None:
    known = task.names()
    for option in task.options:
        _check_text(option, known, f"{where}: options")
    for kind, texts in (("template", task.template), ("plain", task.plain)):
        _check_text(texts.prompt, known | {"option"}, f"{where}: {kind}.prompt")
        _check_text(texts.answer, known | {"option"}, f"{where}: {kind}.answer")
        if not texts.prompt or not texts.answer:
            raise InputError(f"{where}: {kind} needs a prompt and an answer that are not empty")
        if "option" not in _names(texts.prompt) | _names(texts.answer):
            raise InputError(f"{where}: neither prompt nor answer of {kind} has {{option}}: all options would be alike")
        if task.kind == "classification" and "option" in _names(texts.prompt):
            raise InputError(f"{where}: {kind}.prompt has {{option}}; the prompt of a classification has none")


def _names(text: str) -> set[str]:
    return set(PLACEHOLDER.findall(text))


def _check_text(text: str, known: set[str], where: str) -> None:
    unknown = sorted(_names(text) - known)
    if unknown:
        raise InputError(f"{where} has {{{unknown[0]}}}, which is none of {', '.join(sorted(known))}")
    if set(PLACEHOLDER.sub("", text)) & set("{}"):
        raise InputError(f"{where} has a brace that belongs to no {{name}}")
