"""The examples of docs-agreement: what is cut out of a text, and what no two splits share."""

import json

import pytest

from memsim.tasks.agreement import agreement_examples
from memsim.tasks.task_file import find_task
from memsim.weights.shipped import SPLITS, shipped_text

DOCUMENTS = {
    split: [json.loads(line)["text"] for line in shipped_text(split).read_text(encoding="utf-8").splitlines()]
    for split in SPLITS
}
EXAMPLES = agreement_examples(DOCUMENTS)
WORDS = {"singular": "is", "plural": "are"}


def test_an_example_is_a_sentence_around_its_verb() -> None:
    text = "Literals\n********\n\nThe value of a literal is\nconstant.  Its digits are read.\n\nIt is, __a__ are not."
    assert sorted(item["sentence"] for item in agreement_examples({"all": [text]})["all"]) == [
        "Its digits _ read.",
        "The value of a literal _ constant.",
    ]


def test_of_a_long_sentence_whole_words_around_the_verb_stay() -> None:
    words = [f"word{number}" for number in range(20)]
    texts = [" ".join([*words, verb, *words]) for verb in ("is", "are")]
    for example in agreement_examples({"all": texts})["all"]:
        before, after = example["sentence"].split(" _ ")
        assert words[-len(before.split()) :] == before.split()
        assert words[: len(after.split())] == after.split()
        assert 50 < len(before) <= 64
        assert 15 < len(after) <= 24


@pytest.mark.parametrize("split", SPLITS)
def test_every_example_of_the_shipped_text_is_one_of_its_sentences(split: str) -> None:
    text = " ".join(" ".join(document.split()) for document in DOCUMENTS[split])
    for example in EXAMPLES[split]:
        assert example["sentence"].replace(" _ ", f" {WORDS[example['number']]} ") in text


def test_the_first_examples_are_balanced_and_there_are_enough() -> None:
    for split, least in (("train", 500), ("validation", 100), ("test", 100)):
        numbers = [example["number"] for example in EXAMPLES[split]]
        assert len(numbers) >= least
        assert numbers[:20].count("plural") == 10
        assert numbers.count("plural") * 2 == len(numbers)


def test_no_two_splits_share_a_sentence_even_where_documents_do() -> None:
    sentences = {split: {example["sentence"] for example in EXAMPLES[split]} for split in SPLITS}
    assert all(len(sentences[split]) == len(EXAMPLES[split]) for split in SPLITS)
    assert not sentences["train"] & (sentences["validation"] | sentences["test"])
    assert not sentences["validation"] & sentences["test"]
    shared = ["The one text is here. All words are here."]
    assert agreement_examples({"train": shared, "test": shared})["train"] == []


@pytest.mark.parametrize("with_template", [True, False])
def test_every_example_fits_a_window_of_96_tokens(with_template: bool) -> None:
    task = find_task("docs-agreement")
    for split in SPLITS:
        for item in EXAMPLES[split]:
            for texts in task.example(item, with_template, split).options:
                assert len((texts.prompt + texts.answer).encode()) <= 96 + 1  # the last one is only a label
