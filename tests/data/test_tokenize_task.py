"""Examples to labelled windows: what is a label, what is cut, what is padded, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from memsim.data.examples import ExampleFile
from memsim.data.tokenize_task import ExampleInfo, prepare_examples
from memsim.data.windows import IGNORED
from memsim.errors import InputError
from memsim.results import TokenizerResult
from memsim.tasks.task_file import find_task
from toy import BY_BYTES, in_file

FILMS = ({"sentence": "a warm film", "label": 1}, {"sentence": "dull", "label": 0})
CUPS = ({"sentence": "It fits because _ is big.", "option1": "the cup", "option2": "it", "answer": "1"},)
VOCAB = 300
PAD = 0


def prepare(
    directory: Path,
    examples: Any,
    task: str = "sst2",
    options: str = "right",
    tokenizer: Path | None = None,
    **changes: Any,
) -> tuple[ExampleInfo, ExampleFile]:
    source = directory / "examples.jsonl"
    if not isinstance(examples, bytes):
        examples = "".join(json.dumps(example) + "\n" for example in examples).encode()
    source.write_bytes(examples)
    settings = {"vocab_size": VOCAB, "seq_len": 32, "with_template": True} | changes
    chosen = in_file(tokenizer) if tokenizer else BY_BYTES
    info = prepare_examples(source, chosen, directory / "out", find_task(task), options=options, **settings)
    n_labels = 2 if options == "none" else settings["vocab_size"]
    n_options = 2 if options == "all" else 1
    return info, ExampleFile(directory / "out", settings["vocab_size"], n_labels, settings["seq_len"], n_options)


def spelled(window: tuple[np.ndarray, np.ndarray]) -> tuple[str, str]:
    """Return the text of the ids without padding, and that of the labels with dots where there is none."""
    ids, labels = window
    text = bytes(ids.tolist()).rstrip(b"\0").decode()
    return text, "".join("." if label == IGNORED else chr(label) for label in labels.tolist())


def test_the_labels_of_a_window_are_its_answer(tmp_path: Path) -> None:
    info, file = prepare(tmp_path, FILMS)
    assert info == ExampleInfo(n_examples=2, n_truncated=0, tokenizer=TokenizerResult(name="bytes"))
    assert file.n_windows(32) == 2
    prompt = "a warm film It was"
    # The token before the answer predicts its first; the last token of the answer is only ever a label.
    expected = "." * (len(prompt) - 1) + " great"
    assert spelled(file.window(0, 32)) == (prompt + " grea", expected + "." * (32 - len(expected)))
    assert spelled(file.window(1, 32))[0] == "dull It was terribl"


def test_without_the_template_only_the_text_comes_first(tmp_path: Path) -> None:
    _, file = prepare(tmp_path, FILMS, with_template=False)
    assert [spelled(file.window(index, 32))[0] for index in (0, 1)] == ["a warm film grea", "dull terribl"]


def test_an_evaluation_has_a_window_for_each_option(tmp_path: Path) -> None:
    info, file = prepare(tmp_path, CUPS, "winogrande", "all")
    assert info.n_examples == 1
    assert [spelled(file.window(index, 32))[0] for index in (0, 1)] == [
        "It fits because the cup is big", "It fits because it is big",
    ]  # fmt: skip
    assert [spelled(file.window(index, 32))[1].strip(".") for index in (0, 1)] == [" is big", " is big"]
    assert [file.is_right(index) for index in (0, 1)] == [True, False]


def test_a_classifier_s_label_is_on_the_last_token(tmp_path: Path) -> None:
    _, file = prepare(tmp_path, FILMS, options="none")
    for index, (length, label) in enumerate(((len("a warm film It was"), 1), (len("dull It was"), 0))):
        _, labels = file.window(index, 32)
        assert np.flatnonzero(labels != IGNORED).tolist() == [length - 1]
        assert labels[length - 1] == label


def test_what_is_too_long_loses_its_start(tmp_path: Path) -> None:
    long = {"sentence": "x" * 40 + "end", "label": 1}
    info, file = prepare(tmp_path, [long, FILMS[1]])
    assert info == ExampleInfo(n_examples=2, n_truncated=1, tokenizer=TokenizerResult(name="bytes"))
    assert spelled(file.window(0, 32)) == ("x" * 17 + "end It was grea", "." * 26 + " great")


def special_tokenizer(path: Path) -> Path:
    """Write a tokenizer of words that puts <s> before every text and </s> behind it."""
    words = ("<s>", "</s>", "<unk>", "a", "warm", "film", "dull", "It", "was", "great", "terrible")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("seq_len", [7, 4])
def test_special_tokens_stay_first_and_are_no_answer(tmp_path: Path, seq_len: int) -> None:
    tokenizer = special_tokenizer(tmp_path / "tokenizer.json")
    info, file = prepare(tmp_path, FILMS[:1], tokenizer=tokenizer, vocab_size=11, seq_len=seq_len)
    ids, labels = file.window(0, seq_len)
    whole = [0, 3, 4, 5, 7, 8]  # <s> a warm film It was
    assert ids.tolist() == ([*whole, PAD] if seq_len == 7 else [0, 5, 7, 8])
    assert info.n_truncated == (seq_len == 4)
    (at,) = np.flatnonzero(labels != IGNORED)
    assert (ids[at], labels[at]) == (8, 9)  # great, after was


@pytest.mark.parametrize(
    ("data", "changes", "words"),
    [
        (b"", {}, "examples.jsonl has no example"),
        (b"\n \n", {}, "examples.jsonl has no example"),
        (b"{}\n", {}, "line 1: the field 'sentence' is missing"),
        (b'\n{"sentence": "x", "label": 7}\n', {}, "line 2: the label 'label' is 7"),
        (b"[1]\n", {}, "begins as an array, but is not at most 64 MiB of JSON objects in one"),
        (b'{"sentence": "x"\n', {}, "line 1 is not valid JSON"),
        (b'{"sentence": "\xff", "label": 0}\n', {}, "line 1 is not valid JSON"),
        (b'{"sentence": "x", "sentence": "y", "label": 0}\n', {}, "appears twice"),
        (FILMS, {"seq_len": 5}, "line 1 has an answer of 6 tokens, which does not fit --seq-len 5"),
        (FILMS, {"vocab_size": 100}, "line 1 has token id 119, beyond the model's vocabulary of 100"),
    ],
)
def test_examples_that_cannot_serve_are_one_line(tmp_path: Path, data: Any, changes: dict, words: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, data, **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        prepare_examples(
            tmp_path / "none", BY_BYTES, tmp_path / "out", find_task("sst2"),
            vocab_size=9, seq_len=4, with_template=True, options="all",
        )  # fmt: skip


def test_a_damaged_example_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    np.full(17, 5, "<u4").tofile(path)
    with pytest.raises(InputError, match="not a multiple of 72"):
        ExampleFile(path, 10, 10, 4, n_options=2)
    np.full(9, 5, "<u4").tofile(path)
    for vocab_size, n_labels in ((5, 10), (10, 5)):
        with pytest.raises(InputError, match="holds an id or a label in window 0 beyond the vocabulary"):
            ExampleFile(path, vocab_size, n_labels, 4).window(0, 4)
    with pytest.raises(IndexError, match="window 1 of 1"):
        ExampleFile(path, 10, 10, 4).window(1, 4)


ENDS, MASK, LAST = (1, 2), 3, 2


def test_a_window_between_ends_has_its_answer_hidden(tmp_path: Path) -> None:
    prepare(tmp_path, FILMS, ends=ENDS, mask_id=MASK)
    file = ExampleFile(tmp_path / "out", VOCAB, VOCAB, 32, end_id=LAST)
    for index, (prompt, answer) in enumerate((("a warm film It was", " great"), ("dull It was", " terrible"))):
        ids, labels = file.window(index, 32)
        # Without padding, and the labels are on the hidden tokens themselves.
        assert ids.tolist() == [1, *prompt.encode(), *[MASK] * len(answer), LAST]
        assert labels.tolist() == [IGNORED] * (1 + len(prompt)) + list(answer.encode()) + [IGNORED]


def test_a_window_between_ends_has_one_label_of_a_classifier(tmp_path: Path) -> None:
    info, _ = prepare(tmp_path, FILMS, options="none", ends=ENDS, seq_len=12)
    assert info.n_truncated == 2
    file = ExampleFile(tmp_path / "out", VOCAB, 2, 12, end_id=LAST, one_label=True)
    # What is cut is the start of the text, not the ends.
    assert [bytes(file.window(index, 12)[0][1:-1].tolist()) for index in (0, 1)] == [b"ilm It was", b"ull It was"]
    assert [file.window(index, 12)[1].tolist() for index in (0, 1)] == [[1], [0]]
    assert all(file.window(index, 12)[0][[0, -1]].tolist() == list(ENDS) for index in (0, 1))


def test_an_answer_that_leaves_no_room_for_the_ends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has an answer of 6 tokens, which does not fit --seq-len 7"):
        prepare(tmp_path, FILMS, ends=ENDS, mask_id=MASK, seq_len=7)


@pytest.mark.parametrize("damaged", ["end", "label"])
def test_a_window_without_an_end_or_a_label_is_refused(tmp_path: Path, damaged: str) -> None:
    ids, labels = [1, 9, 9 if damaged == "end" else LAST, 0], [IGNORED, 7 if damaged == "end" else IGNORED] * 2
    np.array([[1, *ids, *labels]], "<u4").tofile(tmp_path / "file")
    with pytest.raises(InputError, match="window 0 has no end or no label; tokenize it again"):
        ExampleFile(tmp_path / "file", 10, 10, 4, end_id=LAST).window(0, 4)
