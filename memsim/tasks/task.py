"""A labelled task: how an example becomes a prompt and answers, of which one is right."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memsim.errors import InputError
from memsim.json_file import shown

Form = Literal["text", "clause", "continuation", "blank", "word"]
"""What is done to a field: ``text`` strips blanks around it; ``clause`` its full stop, too; ``continuation`` also makes
its first letter small; ``blank`` cuts it at its only ``_`` into ``<name>_before`` and ``<name>_after``; ``word`` looks
it up in the table ``words``."""

PLACEHOLDER = re.compile(r"\{([a-z0-9_]+)\}")
BLANK = "_"


@dataclass(frozen=True, slots=True)
class Texts:
    """The text of one option: ``answer`` follows ``prompt``. ``{field}`` and ``{option}`` are replaced."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """One example as text.

    Attributes:
        options: The prompt and the answer of each option.
        right: The index of the right one.
    """

    options: tuple[Texts, ...]
    right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a task file holds (see ``task_file``).

    Attributes:
        title: A line for people.
        kind: Whether every example has the same options (``classification``) or brings its own.
        label: The field that says which option is right.
        labels: Its values, in the order of ``options``.
        options: Label words, or fields that hold them.
        score: Whether an option's score is the sum or the mean of its answer's log likelihoods, token by token.
        fields: The fields that an example must have, and what is done to each.
        words: For each field of form ``word``: its values, and the words that stand for them.
        template: How an example reads.
        plain: The same without a prompt: its text and an answer.
    """

    schema: Literal["memsim.task/1"]
    title: str
    kind: Literal["classification", "multiple_choice"]
    label: str
    labels: tuple[str, ...]
    options: tuple[str, ...]
    score: Literal["sum", "mean"]
    fields: dict[str, Form]
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    template: Texts
    plain: Texts

    def names(self) -> set[str]:
        """Return what a text may refer to in braces, besides ``option``."""
        blanks = [name for name, form in self.fields.items() if form == "blank"]
        return {*self.fields, *(f"{name}_{side}" for name in blanks for side in ("before", "after"))}

    def example(self, data: Mapping[str, Any], with_template: bool, where: str) -> Example:
        """Return an example as text.

        Args:
            data: Untrusted.
            with_template: Whether it reads as ``template`` or as ``plain`` says.
            where: What error messages call its place in the file.

        Raises:
            InputError: A field is missing or is not what its form takes, or the label is none of the task's.
        """
        values: dict[str, str] = {}
        for name, form in self.fields.items():
            values |= self._values(name, form, _string(data, name, where), where)
        texts = self.template if with_template else self.plain
        options = [values | {"option": _fill(option, values)} for option in self.options]
        filled = tuple(Texts(_fill(texts.prompt, option), _fill(texts.answer, option)) for option in options)
        return Example(filled, self._right(data, where))

    def _values(self, name: str, form: Form, text: str, where: str) -> dict[str, str]:
        text = text.strip()
        if form == "word":
            if text not in self.words[name]:
                known = ", ".join(self.words[name])
                raise InputError(f"{where}: {name!r} is {shown(text)}, which is none of {known}")
            return {name: self.words[name][text]}
        if form == "blank":
            before, blank, after = text.partition(BLANK)
            if not blank or BLANK in after:
                raise InputError(f"{where}: {name!r} must hold one blank {BLANK!r}, not {text.count(BLANK)}")
            return {name: text, f"{name}_before": before, f"{name}_after": after}
        if form in ("clause", "continuation"):
            text = text.removesuffix(".")
        if form == "continuation":
            text = text[:1].lower() + text[1:]
        return {name: text}

    def _right(self, data: Mapping[str, Any], where: str) -> int:
        value = data.get(self.label)
        label = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
        if label not in self.labels:
            found = f"is {shown(value)}" if self.label in data else "is missing"
            raise InputError(f"{where}: the label {self.label!r} {found}; it must be one of {', '.join(self.labels)}")
        return self.labels.index(label)


def _string(data: Mapping[str, Any], name: str, where: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value.strip():
        problem = "must be a string that is not blank" if name in data else "is missing"
        raise InputError(f"{where}: the field {name!r} {problem}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the field {name!r} holds half of a surrogate pair, no character") from None
    return value


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Return ``text`` with each ``{name}`` replaced, in one pass: braces in an example's own text stay."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)
