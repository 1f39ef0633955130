"""Task files and the examples that they read: what comes with memsim, and what is refused in one line."""

from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.tasks.task import Texts
from memsim.tasks.task_file import built_in, find_task, read_task

SST2 = (Path(__file__).parent.parent.parent / "memsim" / "tasks" / "sst2.toml").read_text()

EXAMPLES = {
    "sst2": {"sentence": " a {warm} and _ funny film ", "label": 1},
    "copa": {
        "premise": "My body cast a shadow over the grass.", "choice1": "The sun was rising.",
        "choice2": "The grass was cut.", "question": "cause", "label": 0,
    },
    "winogrande": {
        "sentence": "The cup does not fit in the bag because _ is too big.", "option1": "the cup",
        "option2": "the bag", "answer": "2",
    },
    "docs-agreement": {"sentence": "The arguments _ the same.", "number": "plural"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "with_template", "right", "options"),
    [
        ("sst2", True, 1, [("a {warm} and _ funny film It was", " terrible"), (None, " great")]),
        ("sst2", False, 1, [("a {warm} and _ funny film", " terrible"), (None, " great")]),
        (
            "copa",
            True,
            0,
            [("My body cast a shadow over the grass because", " the sun was rising"), (None, " the grass was cut")],
        ),
        (
            "copa",
            False,
            0,
            [("My body cast a shadow over the grass", " the sun was rising"), (None, " the grass was cut")],
        ),
        (
            "winogrande",
            True,
            1,
            [
                ("The cup does not fit in the bag because the cup", " is too big."),
                ("The cup does not fit in the bag because the bag", " is too big."),
            ],
        ),
        (
            "winogrande",
            False,
            1,
            [("The cup does not fit in the bag because _ is too big.", " the cup"), (None, " the bag")],
        ),
        ("docs-agreement", True, 1, [("The arguments ", "is"), (None, "are")]),
        ("docs-agreement", False, 1, [("The arguments _ the same.", " is"), (None, " are")]),
    ],
)
def test_the_examples_of_each_task(name: str, with_template: bool, right: int, options: list) -> None:
    example = find_task(name).example(EXAMPLES[name], with_template, "here")
    prompt = options[0][0]
    assert example.options == tuple(Texts(first or prompt, second) for first, second in options)
    assert example.right == right


def test_all_tasks_have_an_example_here() -> None:
    assert built_in() == sorted(EXAMPLES)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("sst2", {"label": 2}, "here: the label 'label' is 2; it must be one of 0, 1"),
        ("sst2", {"label": None}, "the label 'label' is None; it must be one of 0, 1"),
        ("sst2", {"label": True}, "the label 'label' is True"),
        ("sst2", {"label": [0]}, "the label 'label' is a list"),
        ("sst2", {"sentence": 3}, "the field 'sentence' must be a string that is not blank"),
        ("sst2", {"sentence": "  \n"}, "the field 'sentence' must be a string that is not blank"),
        ("sst2", {"sentence": "\ud800"}, "the field 'sentence' holds half of a surrogate pair"),
        ("copa", {"question": "why"}, "'question' is 'why', which is none of cause, effect"),
        ("winogrande", {"sentence": "no blank"}, "'sentence' must hold one blank '_', not 0"),
        ("winogrande", {"sentence": "_ and _"}, "'sentence' must hold one blank '_', not 2"),
    ],
)
def test_an_example_that_is_none_is_one_line(name: str, change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        find_task(name).example(EXAMPLES[name] | change, True, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["sentence", "label"])
def test_a_field_that_is_not_there(missing: str) -> None:
    example = {key: value for key, value in EXAMPLES["sst2"].items() if key != missing}
    with pytest.raises(InputError, match=f"'{missing}' is missing"):
        find_task("sst2").example(example, True, "here")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("memsim.task/1", "memsim.task/2", "schema must be one of memsim.task/1, not 'memsim.task/2'"),
        ('score = "sum"', 'score = "best"', "score must be one of sum, mean, not 'best'"),
        ('score = "sum"', "", "has no field 'score'"),
        ('score = "sum"', 'score = "sum"\nscale = 2', "has an unknown field 'scale'"),
        ('labels = ["0", "1"]', 'labels = ["0"]', "labels must be 2 different values"),
        ('labels = ["0", "1"]', 'labels = ["0", "0"]', "labels must be 2 different values"),
        ('["terrible", "great"]', '["great"]', "a task has 2 to 256 options, not 1"),
        ('["terrible", "great"]', '["great", "great"]', "the options of a classification are different words"),
        ('["terrible", "great"]', '["great", "{sentence}"]', "the options of a classification are different words"),
        ('sentence = "text"', 'sentence = "verse"', "must be one of text, clause, continuation, blank, word"),
        ('sentence = "text"', 'sentence = "word"', "every field of form 'word' needs a table of words"),
        ('sentence = "text"', 'sentence = "text"\nlabel = "text"', "'label' cannot be the name of a field"),
        ('sentence = "text"', 'sentence = "text"\n"a b" = "text"', "'a b' cannot be the name of a field"),
        ("{sentence} It was", "{text} It was", "template.prompt has {text}, which is none of option, sentence"),
        ("{sentence} It was", "{sentence It was", "template.prompt has a brace that belongs to no {name}"),
        ("{sentence} It was", "{sentence} {option}", "the prompt of a classification has none"),
        ("{sentence} It was", "", "template needs a prompt and an answer that are not empty"),
        ('answer = " {option}"', 'answer = " fine"', "all options would be alike"),
        ("schema", "schema schema", "is not valid TOML"),
    ],
)
def test_a_file_that_breaks_a_rule_is_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    assert old in SST2
    path.write_text(SST2.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_task(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_one_s_own_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SST2.replace("great", "good"))
    assert find_task(str(path)).options == ("terrible", "good")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sst3", "no task called 'sst3'; tasks: copa, docs-agreement, sst2, winogrande; or the path of a .toml file"),
        ("missing.toml", "cannot read missing.toml"),
        ("/dev/zero.toml", "cannot read"),
    ],
)
def test_a_task_that_is_not_there(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_task(name)


def test_a_file_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("#" * (1 << 17))
    with pytest.raises(InputError, match="larger than the 64 KiB"):
        read_task(path)


def test_the_task_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "schemes-and-tasks.md").read_text()
    path = tmp_path / "my.toml"
    path.write_text(text.partition("```toml\n")[2].partition("```")[0])
    example = read_task(path).example({"subject": "a {fire}", "sender": "boss", "urgent": "yes"}, True, "here")
    assert example.options[example.right] == Texts("my boss wrote: a {fire}. I answer", " now")
