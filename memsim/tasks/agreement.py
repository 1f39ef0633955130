"""Examples of the task ``docs-agreement``: sentences of a text with a gap where they have ``is`` or ``are``."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256

from memsim.tasks.task import BLANK

Example = dict[str, str]

BEFORE_CHARS, AFTER_CHARS = 64, 24
"""The most of a sentence that an example shows on either side of its gap."""

_NUMBERS = {"is": "singular", "are": "plural"}
_VERB = re.compile(rf" ({'|'.join(_NUMBERS)}) ")
_SENTENCE_END = re.compile(r"(?<=[.:!?]) ")
_LEAST_BEFORE_CHARS = 8


def agreement_examples(documents: Mapping[str, Sequence[str]]) -> dict[str, list[Example]]:
    """Return the examples of each split, as many singular as plural, in turns.

    A sentence is an example of one split only, the last one in ``documents`` that has it, and once. Their hash decides
    which ones stay where there are more of one number, and their order: the first so many are a sample of all.

    Args:
        documents: Split -> its texts.
    """
    examples: dict[str, list[Example]] = {}
    seen: set[str] = set()
    for split in reversed(list(documents)):
        found = {item["sentence"]: item for text in documents[split] for item in _in_text(text)}
        fresh = [item for sentence, item in found.items() if sentence not in seen]
        seen |= found.keys()
        examples[split] = _balanced(fresh)
    return {split: examples[split] for split in documents}


def _in_text(text: str) -> Iterator[Example]:
    for paragraph in text.split("\n\n"):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            # A gap that is not the only one in what is shown, or a dunder name, could not be told from it.
            for verb in () if BLANK in sentence else _VERB.finditer(sentence):
                before = _whole_words(sentence[: verb.start()], -BEFORE_CHARS)
                after = _whole_words(sentence[verb.end() :], AFTER_CHARS)
                if len(before) >= _LEAST_BEFORE_CHARS:
                    yield {"sentence": f"{before} {BLANK} {after}", "number": _NUMBERS[verb[1]]}


def _whole_words(text: str, limit: int) -> str:
    """Return at most the first ``limit`` characters of ``text``, or the last if that is negative, cut between words."""
    if len(text) <= abs(limit):
        return text
    return text[limit:].partition(" ")[2] if limit < 0 else text[: limit + 1].rpartition(" ")[0]


def _balanced(examples: Iterable[Example]) -> list[Example]:
    ordered = sorted(examples, key=lambda item: sha256(item["sentence"].encode()).digest())
    numbers = [[item for item in ordered if item["number"] == number] for number in _NUMBERS.values()]
    return [item for pair in zip(*numbers, strict=False) for item in pair]
